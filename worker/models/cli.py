"""`python -m worker import | verify`: what `huafang models` asks for, as it takes what only workers have.

Tells of the work in lines of JSON on stdout, the last of which is the result. Talks to no service of the farm.
"""

import json
import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.catalog import catalog, manifest
from common.catalog.catalog import Model
from common.catalog.manifest import ModelManifest
from common.config import Settings
from common.errors import Conflict, Error, Invalid, ModelRefused
from worker.models import hub, importer
from worker.models import store as model_store
from worker.pipelines import base, checkpoint, registry

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
TOLD_EVERY_S = 0.2
FROM_LIKE = ("family", "width", "height", "steps", "scheduler", "guidance", "token_limit", "negative_prompt")
UNTIL_ITS_FILES_SAY_IT = {
    "family": "",
    "licence": "unknown",
    "width": 64,
    "height": 64,
    "scheduler": "ddim",
    "token_limit": 77,
}


def main(settings: Settings, asked: Namespace) -> int:
    """Errors are told too, with the number that the command line takes its exit code from."""
    try:
        _tell({"import": import_one, "verify": verify}[asked.kind](settings, asked))
    except Error as error:
        _tell({"error": error.message, "status": error.status})
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def import_one(settings: Settings, asked: Namespace) -> dict[str, Any]:
    store = settings.model_store
    model, entry = _wanted(settings, asked)
    if entry is None and model.source_path and checkpoint.is_safe(model, model.source_path):
        raise Conflict(f"{model.name} is read where it lies, in {model.source_path}: there is nothing to import.")
    if asked.dry_run:
        return _plan(model)
    like = _here(settings, asked.like) if asked.like else None
    device = "auto" if settings.device.startswith("stub") else settings.device

    def load(model: Model) -> base.Pipeline:
        return registry.load(model, device, settings.torch_threads)

    def report(phase: str, done: int, total: int) -> None:
        _tell({"phase": phase, "done": done, "total": total})

    tell = importer.throttled(report, TOLD_EVERY_S)
    with importer.import_lock(model, store, tell):
        found = importer.find(model, store)
        has_it = found is not None and model_store.is_whole(found, store)
        made = found if found and has_it else importer.import_model(model, store, load, tell, entry, like)
    return _result(made, store, has_it)


def verify(settings: Settings, asked: Namespace) -> dict[str, Any]:
    """Why a worker would refuse each of these models, None for one that it would serve. Renders nothing."""
    found: dict[str, str | None] = {}
    for name in asked.names:
        model = _here(settings, name)
        try:
            folder = checkpoint.find(model)
            if not asked.files_only:
                from worker.pipelines import loader  # imports torch

                loader.check(model, folder)
            found[name] = None
        except ModelRefused as error:
            found[name] = error.message
        except Exception as error:  # whatever a damaged file makes the libraries raise
            found[name] = checkpoint.refused(model, f"it cannot be loaded ({checkpoint.first_line(error)})").message
    return found


def _wanted(settings: Settings, asked: Namespace) -> tuple[Model, dict[str, Any] | None]:
    """The model to import, and the entry that it is to have, where the catalogue has none of its name."""
    listed, store = catalog.read(settings.catalog).models, settings.model_store
    name, source = asked.name or asked.source, asked.source
    if (path := Path(source).expanduser()).exists() or source.startswith(("/", ".", "~")):
        source = str(path.absolute())
    if model := listed.get(name):
        if source not in (name, model.source, str(model.source_path and model.source_path.absolute())):
            raise Conflict(f"The catalogue's {name} is {model.source}: choose another name, or change its entry.")
        return replace(model, revision=asked.revision or model.revision), None
    if asked.source in listed:
        raise Conflict(f"{asked.source} is a model of the catalogue: import it without --name.")
    if not NAME.fullmatch(name):
        raise Invalid(f"{name!r} cannot be a model's name: say --name NAME, of letters, digits and - _ . only.")
    written = catalog.read_entry(name, store)
    source = written["source"] if written and asked.source == name else source
    if "/" not in source:
        raise Invalid(f"{source} is no model of the catalogue, no folder or file here, and no hub id (owner/name).")
    entry = {**_usual(source), **(written if written.get("source") == source else {}), **_said(settings, asked)}
    known = entry.pop("revision", None)
    model = catalog.model_from_entry(name, {**UNTIL_ITS_FILES_SAY_IT, **entry}, store)
    return replace(model, revision=None if model.source_path else asked.revision or known), entry


def _usual(source: str) -> dict[str, Any]:
    return {
        "source": source,
        "description": f"Imported from {source}.",
        "licence_url": "" if source.startswith("/") else f"{hub.PAGE}/{source}",
        "steps": 30,
        "guidance": 7.5,
    }


def _said(settings: Settings, asked: Namespace) -> dict[str, Any]:
    """What the operator says of it."""
    said: dict[str, Any] = {"safety_checker": False} if asked.no_safety_checker else {}
    if asked.like:
        like = catalog.read(settings.catalog, settings.model_store).get(asked.like)
        said |= {field: getattr(like, field) for field in FROM_LIKE}
    return said | ({"licence": asked.licence} if asked.licence else {})


def _here(settings: Settings, name: str) -> Model:
    """A model as it lies on this host. Raises UnknownModel, or Invalid when it does not."""
    model = catalog.read(settings.catalog, settings.model_store).get(name)
    if model.source_path and checkpoint.is_safe(model, model.source_path):
        return model
    if there := importer.find(model, settings.model_store):
        return importer.with_local_path(model, settings.model_store, there)
    raise Invalid(f"{name} is not on this host: run `huafang models import {name}` first.")


def _plan(model: Model) -> dict[str, Any]:
    """What would be brought here."""
    if model.source_path is None:
        listing = hub.list_files(model)
        files = {file.path: file.bytes for file in listing.files}
        return {"model": model.name, "source": model.source, "revision": listing.revision, **_listed(files)}
    if not model.source_path.exists():
        raise checkpoint.refused(model, f"there is no {model.source_path}")
    if model.source_path.is_file():
        files = {model.source_path.name: model.source_path.stat().st_size}
    else:
        parts = [
            model.source_path / name for name in checkpoint.components(model) if (model.source_path / name).is_dir()
        ]
        found = [file for part in parts for file in checkpoint.files(part)]
        files = {file.relative_to(model.source_path).as_posix(): file.stat().st_size for file in found}
    return {"model": model.name, "source": model.source, "revision": None, **_listed(files)}


def _listed(files: dict[str, int]) -> dict[str, Any]:
    return {"bytes": sum(files.values()), "files": [{"path": path, "bytes": size} for path, size in files.items()]}


def _result(made: ModelManifest, store: Path, had_it: bool) -> dict[str, Any]:
    return {
        "model": made.name,
        "source": made.source,
        "revision": made.revision,
        "family": made.family,
        "licence": made.licence,
        "folder": str(store / made.name),
        "bytes": made.bytes,
        "parts": {name: {"digest": part.digest, "bytes": part.bytes} for name, part in made.components.items()},
        "shared": made.shared_with(manifest.read_all(store)),
        "had_it": had_it,
    }


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()
