"""Runs `python -m worker import | verify | prove` for a command, and shows what it is doing. Knows no model."""

import json
import subprocess
import sys

from cli import sentence
from cli.client import Json
from cli.errors import INTERRUPTED, Failure, exit_code_of
from cli.shell import Shell, format_bytes
from cli.watch import show_progress

PHASES = {
    "wait": "another process imports",
    "fetch": "downloading",
    "convert": "converting",
    "check": "testing",
    "load": "loading",
    "render": "rendering",
    "measure": "measuring",
    "load_plain": "loading plain diffusers",
    "compare": "rendering with plain diffusers",
}


def run_worker(shell: Shell, title: str, *arguments: str) -> Json:
    """The result of `python -m worker …`, its last JSON line; the others are progress. Raises Failure for an error."""
    last: Json = {"error": sentence("import_ended")}
    command = [sys.executable, "-P", "-m", "worker", *arguments]
    with (
        show_progress(shell, describe, bar, line_key=lambda line: (line["phase"], tenth(line))) as show,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout
        try:
            for text in child.stdout:
                if "phase" in (line := json.loads(text)):
                    show({"id": title, **line})
                else:
                    last = line
        except KeyboardInterrupt:
            child.wait()  # it got the signal too, and cleans up
            raise Failure(sentence("import_interrupted"), INTERRUPTED) from None
    if "error" in last:
        raise Failure(last["error"], exit_code_of(last.get("status", 500)))
    return last


def describe(line: Json) -> str:
    size = f": {format_bytes(line['done'])} of {format_bytes(line['total'])}" if line["phase"] == "fetch" else ""
    return PHASES[line["phase"]] + size


def bar(line: Json) -> Json:
    return {"description": describe(line), "total": line["total"] or None, "completed": line["done"]}


def tenth(line: Json) -> int:
    return int(line["done"] * 10 // line["total"]) if line["phase"] == "fetch" and line["total"] else 0
