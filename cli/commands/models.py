"""`huafang models`: what the farm's catalogue has, what is brought to this host, and whether its files are whole.

`verify` reads the files of this machine; of a model that is only on the hub it says what the farm's workers report.
What takes torch or the hub's client is done by `python -m worker import | verify`.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import click

from cli.commands import licences
from cli.local import called, local_url
from cli.shell import INTERRUPTED, Columns, Failure, Group, Shell
from cli.watch import teller
from common.catalog import manifest
from common.catalog.catalog import Model, read

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
PHASES = {"wait": "another process imports", "fetch": "fetching", "convert": "converting", "check": "trying it out"}

ROW: Columns = {
    "model": lambda model: model["name"],
    "": lambda model: "default" if model["is_default"] else "",
    "served by": lambda model: ", ".join(model["availability"]["workers"]) or "no worker",
    "size": lambda model: f"{model['defaults']['width']}×{model['defaults']['height']}",
    "steps": lambda model: f"{model['defaults']['steps']} of {model['defaults']['scheduler']}",
    "guidance": lambda model: model["defaults"]["guidance"],
    "licence": lambda model: model["licence"],
    " ": licences.to_accept,
    "description": lambda model: model["description"],
}
FOUND: Columns = {
    "model": lambda found: found["model"],
    "": lambda found: found["verdict"],
    "files": lambda found: found["files"],
    "details": lambda found: "; ".join(found["details"]),
}
PLANNED: Columns = {
    "file": lambda file: file["path"],
    "size": lambda file: size(file["bytes"]),
}
IMPORTED: Columns = {
    "model": lambda made: made["model"],
    "source": lambda made: made["source"],
    "revision": lambda made: made["revision"],
    "family": lambda made: made["family"],
    "licence": lambda made: made["licence"],
    "size": lambda made: size(made["bytes"]),
    "folder": lambda made: made["folder"],
    "shared": lambda made: "; ".join(f"{part} with {', '.join(names)}" for part, names in made["shared"].items()),
}


@click.group(cls=Group)
def models() -> None:
    """The models of the catalogue."""


models.add_command(licences.show)
models.add_command(licences.accept)


@models.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List the farm's models, with their licences and defaults."""
    shell.print_rows(shell.client.get("/v1/models")["items"], ROW, name="name")


@models.command("import")
@click.argument("source")
@click.option("--name", help="What the farm is to call it; left out where SOURCE is a model of the catalogue.")
@click.option("--revision", help="The hub's branch, tag or commit.  [default: the newest]")
@click.option("--like", metavar="MODEL", help="Take defaults from this model; a single file needs its other parts too.")
@click.option("--licence", help="Its licence, where the hub does not say it.")
@click.option("--no-safety-checker", is_flag=True, help="Serve it without one.")
@click.option("--dry-run", is_flag=True, help="Only show what would be brought here.")
@click.pass_obj
def import_(
    shell: Shell, /, source: str, name: str | None, dry_run: bool, no_safety_checker: bool, **options: str | None
) -> None:
    """Bring a model to this host: convert it once, try it out, keep it for all workers here.

    SOURCE is a hub id (owner/name; a token is taken from HF_TOKEN), a folder, a .ckpt or .safetensors file, or the name
    of a model of the catalogue. What breaks off goes on where it stopped when it is run again.
    """
    given = [f"--{option}={value}" for option, value in {"name": name, **options}.items() if value is not None]
    flags = {"--no-safety-checker": no_safety_checker, "--dry-run": dry_run}
    arguments = [*given, *(flag for flag, is_set in flags.items() if is_set), "--", source]
    done = work(shell, name or source, "import", *arguments)
    if dry_run:
        shell.note(f"{done['model']} would be brought here from {done['source']}: {size(done['bytes'])}.")
        shell.print_rows(done["files"], PLANNED, name="path")
        return
    shell.print_record(done, IMPORTED, name="model")
    if done["had_it"]:
        shell.note(f"{done['model']} was on this host already.")
    elif local_url(shell.settings.home):
        shell.note(f"A farm that runs here serves it once it was started again: {called()} down && {called()} up")


@models.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@click.pass_obj
def verify(shell: Shell, names: tuple[str, ...]) -> None:
    """Check the files of models on this machine: by their checksums, and as a worker does before it serves them."""
    catalog = read(shell.settings.catalog, shell.settings.model_store)
    chosen = [catalog.get(name) for name in names or catalog.models]
    found = [look(shell, model) for model in chosen]
    refused = would_refuse(shell, [each["model"] for each in found if each["verdict"] in ("ok", "unchecked")])
    for each in found:
        if reason := refused.get(each["model"]):
            each |= {"verdict": "bad", "details": [reason]}
    shell.print_rows(found, FOUND, name="verdict")
    if bad := [each["model"] for each in found if each["verdict"] == "bad"]:
        raise Failure(f"{', '.join(bad)}: the files are not as they must be; restore or import them before rendering.")


def look(shell: Shell, model: Model) -> dict[str, Any]:
    if not model.is_local:
        return {"model": model.name, "verdict": "not here", "files": 0, "details": [reported(shell, model)]}
    sums = checksums(model)
    wrong = problems(model)
    unchecked = [] if sums else ["the catalogue has no checksums for it: only its layout was looked at"]
    verdict = "bad" if wrong else "ok" if sums else "unchecked"
    return {"model": model.name, "verdict": verdict, "files": len(sums), "details": wrong or unchecked}


def checksums(model: Model) -> Mapping[str, str]:
    """Of the catalogue, for files that its operator keeps; of its import for what was imported."""
    there = manifest.read(model.import_path) if model.import_path else None
    return there.sha256 if there and not model.source_path else model.sha256


def problems(model: Model) -> list[str]:
    folder = model.source_path or model.import_path
    if folder is None or not folder.is_dir():
        return [f"there is no folder {folder}"]
    wrong = []
    if not any((folder / "tokenizer" / name).is_file() for name in VOCABULARIES):
        wrong.append("its folder tokenizer holds no vocabulary (neither tokenizer.json nor vocab.txt)")
    if not (folder / "model_index.json").is_file():
        wrong.append("model_index.json is missing")
    for path, expected in checksums(model).items():
        if (folder / path).is_file():
            with (folder / path).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                    wrong.append(f"the sha256 of {path} is not what it must be")
        elif path != "model_index.json":
            wrong.append(f"{path} is missing")
    return wrong


def would_refuse(shell: Shell, names: list[str]) -> dict[str, str | None]:
    """Why a worker would refuse these models, by name; nothing where no worker could run."""
    if not names or find_spec("torch") is None:
        return {}
    return work(shell, ", ".join(names), "verify", *names)


def work(shell: Shell, about: str, *arguments: str) -> dict[str, Any]:
    """What `python -m worker` answers; its progress is shown as it comes. Raises Failure with what it says is wrong."""
    last: dict[str, Any] = {"error": "The import ended before it was done: run it again, it goes on where it stopped."}
    command = [sys.executable, "-P", "-m", "worker", *arguments]
    with (
        teller(shell, describe, position, news=lambda told: (told["phase"], tenth(told))) as tell,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout
        try:
            for line in child.stdout:
                if "phase" in (told := json.loads(line)):
                    tell({"id": about, **told})
                else:
                    last = told
        except KeyboardInterrupt:
            child.wait()  # it got the signal too, and tidies up
            raise Failure("Interrupted: run it again, it goes on where it stopped.", INTERRUPTED) from None
    if "error" in last:
        raise Failure(last["error"], Failure.code_of(last.get("status", 500)))
    return last


def describe(told: dict[str, Any]) -> str:
    parts = f": {size(told['done'])} of {size(told['total'])}" if told["phase"] == "fetch" else ""
    return PHASES[told["phase"]] + parts


def position(told: dict[str, Any]) -> dict[str, Any]:
    return {"description": describe(told), "total": told["total"] or None, "completed": told["done"]}


def tenth(told: dict[str, Any]) -> int:
    return told["done"] * 10 // told["total"] if told["phase"] == "fetch" and told["total"] else 0


def size(count: int) -> str:
    unit, bytes = next((each for each in (("GB", 10**9), ("MB", 10**6)) if count >= each[1]), ("kB", 1000))
    return f"{count / bytes:.1f} {unit}"


def reported(shell: Shell, model: Model) -> str:
    """What the farm's workers say of a model that is on the hub."""
    hub = f"its files come from the hub ({model.source}) when a worker first needs them"
    try:
        known = {each["name"]: each["availability"] for each in shell.client.get("/v1/models")["items"]}
    except Failure:
        return f"{hub}; no farm answers that could know more (`{called()} up`)"
    availability = known.get(model.name, {"resident_on": [], "refusals": []})
    if availability["resident_on"]:
        return f"resident on {', '.join(availability['resident_on'])}"
    refusals = [f"{each['worker']} says: {each['reason']}" for each in availability["refusals"]]
    return refusals[0] if refusals else f"{hub}; no worker holds it now"
