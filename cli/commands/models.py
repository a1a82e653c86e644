"""`huafang models`: the farm's catalogue and its licences, and the models on this host.

`python -m worker import | verify | prove` reads and writes files of models: it has torch and the hub's client.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

import click

from cli import sentence
from cli.client import Json, api_path
from cli.commands.worker_process import run_worker
from cli.errors import NOT_FOUND, USAGE, Failure, program_name
from cli.local import local_url
from cli.shell import Group, Shell, format_bytes
from cli.terminal import Columns, Row, print_line
from common.catalog import manifest
from common.catalog.catalog import Model, read


def licence(model: Row) -> str:
    return " ".join(filter(None, (model["licence"], model["licence_version"])))


def price(model: Row) -> str | None:
    """An older farm has no prices."""
    known = model.get("price")
    if not known:
        return None
    units = {"image": "an image", "megapixel": "a megapixel"}
    amounts = [f"{known[name]:g} {known['currency']} {unit}" for name, unit in units.items() if known[name]]
    return " and ".join(amounts) or "free"


def must_accept(model: Row) -> bool:
    return binds(model) and not model["licence_accepted_at"]


def binds(model: Row) -> bool:
    """Whether its licence must be accepted. An older farm has no terms."""
    return bool(model["restrictions"] or model.get("licence_terms"))


def sizes(limits: Json) -> str:
    multiple = f", in steps of {limits['size_multiple']}" if "size_multiple" in limits else ""
    return f"sides from {limits['min_side']}{multiple}; at most {limits['max_pixels']} pixels"


ROW: Columns = {
    "model": lambda model: model["name"],
    "": lambda model: "default" if model["is_default"] else "",
    "served by": lambda model: ", ".join(model["availability"]["workers"]) or "no worker",
    "size": lambda model: f"{model['defaults']['width']}×{model['defaults']['height']}",
    "steps": lambda model: f"{model['defaults']['steps']} of {model['defaults']['scheduler']}",
    "guidance": lambda model: model["defaults"]["guidance"],
    "licence": lambda model: model["licence"],
    " ": lambda model: "to be accepted" if must_accept(model) else "",
    "description": lambda model: model["description"],
}
MODEL: Columns = {  # an older farm says less
    "model": lambda model: model["name"],
    "description": lambda model: model["description"],
    "source": lambda model: model["source"],
    "family": lambda model: model["family"],
    "sizes": lambda model: sizes(model["limits"]),
    "schedulers": lambda model: ", ".join(model["limits"]["schedulers"]),
    "modes": lambda model: ", ".join(model["limits"].get("modes", ())),
    "reads": lambda model: (
        ", ".join(field.replace("_", " ") for field, is_read in model["reads"].items() if is_read)
        if "reads" in model
        else ""
    ),
    "price": price,
    "licence": licence,
    "full text": lambda model: model["licence_url"],
    "accepted": lambda model: model["licence_accepted_at"] or ("not yet" if binds(model) else "needs not be"),
    "not to be used": lambda model: "; ".join(model["restrictions"]),
    "terms": lambda model: "; ".join(model.get("licence_terms", ())),
}
VERIFIED: Columns = {
    "model": lambda found: found["model"],
    "": lambda found: found["verdict"],
    "files": lambda found: found["files"],
    "details": lambda found: "; ".join(found["details"]),
}
PLANNED: Columns = {
    "file": lambda file: file["path"],
    "size": lambda file: format_bytes(file["bytes"]),
}
IMPORTED: Columns = {
    "model": lambda made: made["model"],
    "source": lambda made: made["source"],
    "revision": lambda made: made["revision"],
    "family": lambda made: made["family"],
    "licence": lambda made: made["licence"],
    "size": lambda made: format_bytes(made["bytes"]),
    "folder": lambda made: made["folder"],
    "shared": lambda made: "; ".join(f"{part} with {', '.join(names)}" for part, names in made["shared"].items()),
}
PROVED: Columns = {
    "model": lambda found: found["model"],
    "source": lambda found: found["source"],
    "revision": lambda found: found["revision"],
    "device": lambda found: found["device"],
    "computed in": lambda found: found["precision"] + (", compiled" if found["compiled"] else ""),
    "recipe": lambda found: f"{found['width']}×{found['height']}, {found['steps']} steps of {found['scheduler']}",
    "from plain diffusers": lambda found: f"{found['levels_max']} levels at most, {found['levels_mean']:g} on average",
    "one at a time": lambda found: f"{found['images_per_s']:.3g} images/s",
    "best": lambda found: f"{found['images_per_s_at_batch_size']:.3g} images/s, {found['batch_size']} at once",
    "memory": lambda found: f"{format_bytes(found['bytes_loaded'])}, at most {format_bytes(found['bytes_at_most'])}",
    "loaded in": lambda found: f"{found['load_s']:g} s",
    "versions": lambda found: f"torch {found['torch']}, diffusers {found['diffusers']}, huafang {commit_of(found)}",
}


def commit_of(found: Row) -> str:
    return " ".join(filter(None, (found["huafang"], found["commit"])))


@click.group(cls=Group)
def models() -> None:
    """The models of the catalogue."""


@models.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List the farm's models, with their licences and defaults."""
    shell.print_rows(shell.client.get("/v1/models")["items"], ROW, name="name")


# Licences


@models.command()
@click.argument("name", metavar="MODEL")
@click.pass_obj
def show(shell: Shell, name: str) -> None:
    """Show a model, what its recipes can say, and the restrictions of its licence."""
    shell.print_record(find_model(shell, name), MODEL, name="name")


@models.command()
@click.argument("name", metavar="MODEL")
@click.option("--yes", "is_agreed", is_flag=True, help="Accept without a question: you have read the licence.")
@click.pass_obj
def accept(shell: Shell, name: str, is_agreed: bool) -> None:
    """Show the licence of a model and accept it for your tenant: once, for all models with this licence."""
    model = find_model(shell, name)
    if must_accept(model):
        if not is_agreed:
            ask(model)
        model = shell.client.post(api_path("models", name, "licence"), {"version": model["licence_version"]})
    shell.print_record(model, MODEL, name="name")


def ask(model: Json) -> None:
    """Raises Failure unless the user answers yes."""
    print_line(f"{model['name']} is under the licence {licence(model)}.", err=True)
    for term in model.get("licence_terms", ()):
        print_line(f"It {term}.", err=True)
    if model["restrictions"]:
        print_line("It must not be used", err=True)
    for one in model["restrictions"]:
        print_line(f"  - {one}", err=True)
    print_line(f"The full text: {model['licence_url']}", err=True)
    if not sys.stdin.isatty():
        raise Failure(sentence("licence_needs_yes", program=program_name(), model=model["name"]), USAGE)
    if not click.confirm("Do you accept it?", err=True):
        raise Failure(sentence("licence_refused", model=model["name"]))


def find_model(shell: Shell, name: str) -> Json:
    for model in shell.client.get("/v1/models")["items"]:
        if model["name"] == name:
            return dict(model)
    raise Failure(sentence("model_unknown", model=name, program=program_name()), NOT_FOUND)


# Files on this host


@models.command("import")
@click.argument("source")
@click.option("--name", help="The model's name in the farm; not needed where SOURCE is a model of the catalogue.")
@click.option("--revision", help="The hub's branch, tag or commit.  [default: the newest]")
@click.option("--like", metavar="MODEL", help="The model with the same defaults; a single file needs its other parts.")
@click.option("--licence", help="The licence, where the hub does not name it.")
@click.option("--safety-checker", metavar="NAME", help="The catalogue's safety checker that judges its images.")
@click.option("--no-safety-checker", is_flag=True, help="Serve the model without a safety checker.")
@click.option("--dry-run", is_flag=True, help="Show the files and import nothing.")
@click.pass_obj
def import_(
    shell: Shell, /, source: str, name: str | None, dry_run: bool, no_safety_checker: bool, **options: str | None
) -> None:
    """Import a model to this host: download, convert and test it once, for all workers of this host.

    SOURCE is a hub id (owner/name; the token is HF_TOKEN), a folder, a .ckpt or .safetensors file, or the name of a
    model of the catalogue. Run an interrupted import again to resume it.
    """
    given = [
        f"--{option.replace('_', '-')}={value}"
        for option, value in {"name": name, **options}.items()
        if value is not None
    ]
    flags = {"--no-safety-checker": no_safety_checker, "--dry-run": dry_run}
    arguments = [*given, *(flag for flag, is_set in flags.items() if is_set), "--", source]
    done = run_worker(shell, name or source, "import", *arguments)
    if dry_run:
        shell.print_message(f"{done['model']} would be imported from {done['source']}: {format_bytes(done['bytes'])}.")
        shell.print_rows(done["files"], PLANNED, name="path")
        return
    shell.print_record(done, IMPORTED, name="model")
    if done["had_it"]:
        shell.print_message(f"{done['model']} was on this host already.")
    elif local_url(shell.settings.home):
        program = program_name()
        shell.print_message(f"The local farm serves it after a restart: {program} down && {program} up")


@models.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@click.pass_obj
def verify(shell: Shell, names: tuple[str, ...]) -> None:
    """Check the files of models on this host as a worker does before it serves them: checksums, layout, weights."""
    catalog = read(shell.settings.catalog, shell.settings.model_store)
    chosen = [catalog.get(name) for name in names or catalog.models]
    refusals = find_refusals(shell, [model.name for model in chosen if model.is_local], loads=has("torch"))
    found = [verdict(shell, model, refusals) for model in chosen]
    shell.print_rows(found, VERIFIED, name="verdict")
    if bad := [each["model"] for each in found if each["verdict"] == "bad"]:
        raise Failure(sentence("models_damaged", models=", ".join(bad)))


@models.command()
@click.argument("name", metavar="MODEL")
@click.option("--steps", type=click.IntRange(1), help="Render with so many steps.  [default: the model's own]")
@click.pass_obj
def prove(shell: Shell, name: str, steps: int | None) -> None:
    """Compare a model of this host with plain diffusers on this device, and measure it.

    Renders the model's default recipe with both, from one seed, and shows how far they differ; then how many images a
    second this device renders, and the memory and the time to load that it takes. That is four images and a batch: with
    a slow device, ask for fewer steps. A record of --format json is a row for docs/04-models.md.
    """
    given = [f"--steps={steps}"] if steps else []
    shell.print_record(run_worker(shell, name, "prove", *given, "--", name), PROVED, name="levels_max")


def verdict(shell: Shell, model: Model, refusals: Mapping[str, str | None] | None) -> Json:
    if not model.is_local:
        return {"model": model.name, "verdict": "not here", "files": 0, "details": [hub_status(shell, model)]}
    imported = manifest.read(model.import_path) if model.import_path and not model.source_path else None
    sums = imported.sha256 if imported else model.sha256
    if refusals is None:
        return {"model": model.name, "verdict": "unchecked", "files": 0, "details": [sentence("worker_extra_missing")]}
    if reason := refusals[model.name]:
        return {"model": model.name, "verdict": "bad", "files": len(sums), "details": [reason]}
    if not sums:
        return {"model": model.name, "verdict": "unchecked", "files": 0, "details": [sentence("no_checksums")]}
    return {"model": model.name, "verdict": "ok", "files": len(sums), "details": []}


def find_refusals(shell: Shell, names: list[str], loads: bool) -> Mapping[str, str | None] | None:
    """Why a worker would refuse each of these models, None for one that it would serve.

    With `loads` torch loads every part of them; without, only files are checked. None where this host has no worker.
    """
    if not has("safetensors"):
        return None
    if not names:
        return {}
    return run_worker(shell, ", ".join(names), "verify", *([] if loads else ["--files-only"]), *names)


def has(package: str) -> bool:
    return find_spec(package) is not None


def hub_status(shell: Shell, model: Model) -> str:
    """What the farm's workers report of a model that is not on this host."""
    try:
        known = {each["name"]: each["availability"] for each in shell.client.get("/v1/models")["items"]}
    except Failure:
        return sentence("model_on_hub_no_farm", source=model.source, program=program_name())
    availability = known.get(model.name, {"resident_on": [], "refusals": []})
    if availability["resident_on"]:
        return sentence("model_resident", workers=", ".join(availability["resident_on"]))
    for refusal in availability["refusals"]:
        return sentence("model_refused_by", worker=refusal["worker"], reason=refusal["reason"])
    return sentence("model_on_hub", source=model.source)
