"""The local farm: its address, its admin key in a private file, and the processes that start and stop it.

`python -m embedded` and `python -m common.bootstrap` do the work; this reads their JSON. Knows no command.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli import sentence
from cli.errors import INTERRUPTED, Failure, program_name
from common.config import Settings


def find_farm(settings: Settings, url: str | None, key: str | None) -> tuple[str, str | None]:
    """The address and the key to use. The local farm's key is sent to no other address."""
    local = local_url(settings.home)
    found = url or settings.url or local
    if found is None:
        raise Failure(sentence("no_local_farm", program=program_name()))
    given = key or (settings.key.get_secret_value() if settings.key else None)
    found = found.rstrip("/")
    return found, given or (read_key(settings.home) if found == local else None)


def local_url(home: Path) -> str | None:
    try:
        instance = json.loads((home / "farm.json").read_text())
        host = "127.0.0.1" if instance["listen"] == "0.0.0.0" else instance["listen"]
        return f"http://{host}:{instance['ports']['api']}"
    except (OSError, ValueError, KeyError):
        return None


def key_file(home: Path) -> Path:
    return home / "admin-key"


def read_key(home: Path) -> str | None:
    try:
        return key_file(home).read_text().strip() or None
    except OSError:
        return None


def create_key(settings: Settings, environment: dict[str, str]) -> str:
    """Create an admin key in the farm of this environment and write it to `key_file`."""
    made = run_module("common.bootstrap", "bootstrap", "--another", "--wait=30", environment=environment)
    key = str(made["secret"])
    draft = key_file(settings.home).with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    draft.replace(key_file(settings.home))
    return key


def run_embedded(*arguments: str) -> Any:
    """The JSON that `python -m embedded …` prints."""
    return run_module("embedded", *arguments, "--json")


def run_module(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """The JSON that a module prints. Its stderr is ours; a failed one ends this process by the same exit code."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}) as child:
        try:
            printed, _ = child.communicate()
        except KeyboardInterrupt:
            child.wait()  # it got the signal too, and cleans up
            raise
    if child.returncode:
        raise SystemExit(child.returncode if child.returncode > 0 else INTERRUPTED)
    return json.loads(printed)
