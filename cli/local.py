"""The local farm as the command line sees it: its address, its key, and the processes that start and stop it.

Everything is done by `python -m embedded` and `python -m common.bootstrap`; this reads what they say, and keeps the
admin key of the farm in a private file of its home. Knows no command.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli.shell import Failure
from common.config import Settings

ROOT = Path(__file__).resolve().parent.parent


def find_farm(settings: Settings, url: str | None, key: str | None) -> tuple[str, str | None]:
    """The address and the key to use. The local farm's key goes to no other address."""
    local = local_url(settings.home)
    found = url or settings.url or local
    if found is None:
        raise Failure(f"There is no local farm yet: start one with `{called()} up`, or name another with --url.")
    given = key or (settings.key.get_secret_value() if settings.key else None)
    found = found.rstrip("/")
    return found, given or (read_key(settings.home) if found == local else None)


def local_url(home: Path) -> str | None:
    try:
        site = json.loads((home / "farm.json").read_text())
        host = "127.0.0.1" if site["listen"] == "0.0.0.0" else site["listen"]
        return f"http://{host}:{site['ports']['api']}"
    except (OSError, ValueError, KeyError):
        return None


def key_file(home: Path) -> Path:
    return home / "admin-key"


def read_key(home: Path) -> str | None:
    try:
        return key_file(home).read_text().strip() or None
    except OSError:
        return None


def make_key(settings: Settings, environment: dict[str, str]) -> str:
    """Make an admin key in the farm that this environment leads to, and keep it."""
    made = run("common.bootstrap", "bootstrap", "--another", "--wait=30", environment=environment)
    key = str(made["secret"])
    draft = key_file(settings.home).with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    draft.replace(key_file(settings.home))
    return key


def embedded(*arguments: str) -> Any:
    """What `python -m embedded …` says."""
    return run("embedded", *arguments, "--json")


def run(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """The JSON that a module prints. What it tells people goes to stderr as it comes; its exit code becomes ours."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}) as child:
        try:
            said, _ = child.communicate()
        except KeyboardInterrupt:
            child.wait()  # it got the signal too, and tidies up
            raise
    if child.returncode:
        raise SystemExit(child.returncode if child.returncode > 0 else 130)
    return json.loads(said)


def called() -> str:
    """How to call this command line from where its user is, for hints that can be pasted."""
    script = ROOT / "huafang"
    if shutil.which("huafang") or not script.is_file():
        return "huafang"
    return "./huafang" if Path.cwd() == ROOT else str(script)
