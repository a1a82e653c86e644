"""`python -m worker import | verify | prove`: what `huafang models` needs the libraries of workers for.

Prints progress and then the result as lines of JSON on stdout. Uses no service of the farm.
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
from worker.checkpoints import checkers as checker_files
from worker.checkpoints import layout
from worker.models import checkers, hub, importer, sentence
from worker.models import store as model_store
from worker.models.family import check_decided, tell_family
from worker.pipelines import base, registry

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
PROGRESS_S = 0.2
LIKE_FIELDS = ("family", "width", "height", "steps", "scheduler", "guidance", "token_limit", "negative_prompt")
PLACEHOLDERS = {  # required fields of an entry, until the model's files are read
    "family": "stable-diffusion",
    "licence": "unknown",
    "width": 64,
    "height": 64,
    "scheduler": "ddim",
    "token_limit": 77,
}


def main(settings: Settings, options: Namespace) -> int:
    """An error is the last line of JSON, with the HTTP status that the command line's exit code follows from."""
    try:
        _print({"import": import_one, "verify": verify, "prove": prove}[options.kind](settings, options))
    except Error as error:
        _print({"error": error.message, "status": error.status})
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def import_one(settings: Settings, options: Namespace) -> dict[str, Any]:
    store = settings.model_store
    model, entry = _resolve(settings, options)
    in_place = entry is None and model.source_path is not None and layout.is_safetensors(model, model.source_path)
    if in_place and checkers.is_here(model, store):
        raise Conflict(sentence("model_read_in_place", model=model.name, folder=model.source_path))
    if options.dry_run:
        return _dry_run(model if entry is None else tell_family(model, entry)[0], store)
    like = _local_model(settings, options.like) if options.like else None
    device = _torch_device(settings)

    def load(model: Model) -> base.Pipeline:
        return registry.load(model, device, settings.torch_threads)

    report = importer.throttled(_print_progress, PROGRESS_S)
    checkers.ensure_imported(model, store, report)
    if in_place and model.checker and (imported := importer.find(model.checker, store)):
        return _result(imported, store, had_it=False)
    with importer.import_lock(model, store, report):
        imported = importer.find(model, store)
        had_it = imported is not None and model_store.is_intact(imported, store)
        if imported is None or not had_it:
            imported = importer.import_model(model, store, load, report, entry, like)
    return _result(imported, store, had_it)


def verify(settings: Settings, options: Namespace) -> dict[str, str | None]:
    """By model: why a worker would refuse it, or None. Loads every component; renders nothing."""
    found: dict[str, str | None] = {}
    for name in options.names:
        model = _local_model(settings, name)
        try:
            folder = layout.find(model)
            checker_files.find(model)
            if not options.files_only:
                from worker.pipelines import assembly  # imports torch

                assembly.check(model, folder)
            found[name] = None
        except ModelRefused as error:
            found[name] = error.message
        except Exception as error:  # damaged files make the libraries raise anything
            found[name] = layout.not_loadable(model, error).message
    return found


def prove(settings: Settings, options: Namespace) -> dict[str, Any]:
    """The record of a comparison with plain diffusers."""
    model = _local_model(settings, options.name)
    from worker.models import prove  # imports torch, only for a model that is here

    report = importer.throttled(_print_progress, PROGRESS_S)
    return prove.prove(model, _torch_device(settings), settings.torch_threads, options.steps, report)


def _torch_device(settings: Settings) -> str:
    return "auto" if settings.device.startswith("stub") else settings.device


def _resolve(settings: Settings, options: Namespace) -> tuple[Model, dict[str, Any] | None]:
    """The model to import, and the entry to store with it if the catalogue has none of its name."""
    known, store = catalog.read(settings.catalog, settings.model_store), settings.model_store
    listed = catalog.read(settings.catalog).models
    name, source = options.name or options.source, options.source
    if (path := Path(source).expanduser()).exists() or source.startswith(("/", ".", "~")):
        source = str(path.absolute())
    if model := listed.get(name):
        if source not in (name, model.source, str(model.source_path and model.source_path.absolute())):
            raise Conflict(sentence("model_has_another_source", model=name, source=model.source))
        model = catalog.with_checker(model, known.checkers)
        return replace(model, revision=options.revision or model.revision), None
    if options.source in listed:
        raise Conflict(sentence("model_in_catalog", model=options.source))
    if not NAME.fullmatch(name):
        raise Invalid(sentence("model_name_invalid", name=name))
    own = catalog.read_entry(name, store)
    source = own["source"] if own and options.source == name else source
    if "/" not in source:
        raise Invalid(sentence("model_source_unknown", source=source))
    earlier = own if own.get("source") == source else {}
    entry = {**_default_entry(source), **earlier, **_chosen_values(settings, options)}
    revision = entry.pop("revision", None)
    if "family" in entry:
        check_decided(name, entry["family"], entry)
    model = catalog.with_checker(catalog.model_from_entry(name, {**PLACEHOLDERS, **entry}, store), known.checkers)
    return replace(model, revision=None if model.source_path else options.revision or revision), entry


def _default_entry(source: str) -> dict[str, Any]:
    return {
        "source": source,
        "description": f"Imported from {source}.",
        "licence_url": "" if source.startswith("/") else f"{hub.PAGE}/{source}",
    }


def _chosen_values(settings: Settings, options: Namespace) -> dict[str, Any]:
    """The values of the entry that the operator's options give."""
    chosen: dict[str, Any] = {"safety_checker": False} if options.no_safety_checker else {}
    if options.safety_checker:
        chosen["safety_checker"] = options.safety_checker
    if options.like:
        like = catalog.read(settings.catalog, settings.model_store).get(options.like)
        chosen |= {field: getattr(like, field) for field in LIKE_FIELDS}
        chosen |= {} if like.guided else {"guided": False}
    return chosen | ({"licence": options.licence} if options.licence else {})


def _local_model(settings: Settings, name: str) -> Model:
    """A model with its folder on this host. Raises UnknownModel, or Invalid if it was not imported."""
    model = catalog.read(settings.catalog, settings.model_store).get(name)
    if model.source_path and layout.is_safetensors(model, model.source_path):
        return model
    if imported := importer.find(model, settings.model_store):
        return importer.with_local_path(model, settings.model_store, imported)
    raise Invalid(sentence("model_not_here", model=name))


def _dry_run(model: Model, store: Path) -> dict[str, Any]:
    """The files that an import would read, with their sizes."""
    revision = None
    if model.source_path is None:
        repo = hub.list_files(model)
        layout.check_complete(model, repo.missing)
        files, revision = {file.path: file.bytes for file in repo.files}, repo.revision
    elif not model.source_path.exists():
        raise ModelRefused(sentence("source_folder_missing", model=model.name, folder=model.source_path))
    elif model.source_path.is_file():
        files = {model.source_path.name: model.source_path.stat().st_size}
    else:
        folders = [model.source_path / name for name in layout.components(model) if (model.source_path / name).is_dir()]
        found = [file for folder in folders for file in layout.component_files(folder)]
        files = {file.relative_to(model.source_path).as_posix(): file.stat().st_size for file in found}
    files |= checkers.list_files(model, store)
    return {
        "model": model.name,
        "source": model.source,
        "revision": revision,
        "bytes": sum(files.values()),
        "files": [{"path": path, "bytes": size} for path, size in files.items()],
    }


def _result(imported: ModelManifest, store: Path, had_it: bool) -> dict[str, Any]:
    return {
        "model": imported.name,
        "source": imported.source,
        "revision": imported.revision,
        "family": imported.family,
        "licence": imported.licence,
        "folder": str(store / imported.name),
        "bytes": imported.bytes,
        "parts": {
            name: {"digest": component.digest, "bytes": component.bytes}
            for name, component in imported.components.items()
        },
        "shared": imported.shared_with(manifest.read_all(store)),
        "had_it": had_it,
    }


def _print_progress(phase: str, done: int, total: int) -> None:
    _print({"phase": phase, "done": done, "total": total})


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()
