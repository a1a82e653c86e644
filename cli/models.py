"""`huafang models`: what the farm's catalogue has, and whether the files of its models are whole.

`verify` reads the catalogue and the files of this machine; of a model that is only on the hub it says what the farm's
workers report.
"""

import hashlib
from pathlib import Path
from typing import Any

import click

from cli.local import called
from cli.shell import Columns, Failure, Group, Shell
from common.catalog import Model, read

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")

ROW: Columns = {
    "model": lambda model: model["name"],
    "": lambda model: "default" if model["is_default"] else "",
    "served by": lambda model: ", ".join(model["availability"]["workers"]) or "no worker",
    "size": lambda model: f"{model['defaults']['width']}×{model['defaults']['height']}",
    "steps": lambda model: f"{model['defaults']['steps']} of {model['defaults']['scheduler']}",
    "guidance": lambda model: model["defaults"]["guidance"],
    "licence": lambda model: model["licence"],
    "description": lambda model: model["description"],
}
FOUND: Columns = {
    "model": lambda found: found["model"],
    "": lambda found: found["verdict"],
    "files": lambda found: found["files"],
    "details": lambda found: "; ".join(found["details"]),
}


@click.group(cls=Group)
def models() -> None:
    """The models of the catalogue."""


@models.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List the farm's models, with their licences and defaults."""
    shell.print_rows(shell.client.get("/v1/models")["items"], ROW, name="name")


@models.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@click.pass_obj
def verify(shell: Shell, names: tuple[str, ...]) -> None:
    """Check the files of models on this machine against the checksums of the catalogue (HUAFANG_CATALOG)."""
    catalog = read(shell.settings.catalog)
    chosen = [catalog.get(name) for name in names or catalog.models]
    found = [look(shell, model) for model in chosen]
    shell.print_rows(found, FOUND, name="verdict")
    if bad := [each["model"] for each in found if each["verdict"] == "bad"]:
        raise Failure(f"{', '.join(bad)}: the files are not those of the catalogue; restore them before rendering.")


def look(shell: Shell, model: Model) -> dict[str, Any]:
    if model.folder is None:
        return {"model": model.name, "verdict": "not here", "files": 0, "details": [reported(shell, model)]}
    wrong = list(problems(model, model.folder))
    unchecked = [] if model.sha256 else ["the catalogue has no checksums for it: only its layout was looked at"]
    verdict = "bad" if wrong else "ok" if model.sha256 else "unchecked"
    return {"model": model.name, "verdict": verdict, "files": len(model.sha256), "details": wrong or unchecked}


def problems(model: Model, folder: Path) -> list[str]:
    if not folder.is_dir():
        return [f"there is no folder {folder}"]
    wrong = []
    if not any((folder / "tokenizer" / name).is_file() for name in VOCABULARIES):
        wrong.append("its folder tokenizer holds no vocabulary (neither tokenizer.json nor vocab.txt)")
    if not (folder / "model_index.json").is_file():
        wrong.append("model_index.json is missing")
    for path, expected in model.sha256.items():
        if (folder / path).is_file():
            with (folder / path).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                    wrong.append(f"the sha256 of {path} is not the catalogue's")
        elif path != "model_index.json":
            wrong.append(f"{path} is missing")
    return wrong


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
