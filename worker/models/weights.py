"""What identifies the weights of a model: the hub's commit, or a digest of a local model's files.

A worker says it of each model that it serves with its heartbeat, and of each picture that it draws. The digest of a
folder is that of its import, if the import only copies it. It is kept beside the imports, and computed again when a
file has another size or time. The stub has no weights, but the files of a local model are read for it.

Imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.catalog import manifest
from common.catalog.catalog import Model
from common.catalog.manifest import File
from common.errors import Error
from common.recipes.recipe import canonical_json
from worker.models import store as model_store

DIGESTS = ".digests"  # in the folder of imports
OF_STUB = "stub"  # in place of the weights of a model that is not on this host


def known(model: Model, store: Path, is_stub: bool) -> str | None:
    """What the model would be loaded with now; None while that is not known, or its files cannot be read."""
    from worker.checkpoints import layout
    from worker.models import importer

    with suppress(Error, OSError, ValueError):
        if model.source_path and model.source_path.is_dir() and layout.is_safetensors(model, model.source_path):
            return of_folder(model, model.source_path, store)
        if is_stub:
            return model.revision or OF_STUB
        imported = importer.find(model, store)
        return imported.revision if imported else None
    return OF_STUB if is_stub else None


def of_folder(model: Model, folder: Path, store: Path) -> str:
    """The digest of the files that a local model is loaded from. Raises OSError."""
    state, kept = model_store.source_state(folder), store / DIGESTS / f"{model.name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known_digest = json.loads(kept.read_text("utf-8"))
        if known_digest["state"] == state:
            return str(known_digest["digest"])
    digest = model_store.revision_of(_components(model, folder))
    with suppress(OSError):  # a store that cannot be written costs time, not correctness
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_name(f"{kept.name}.{os.getpid()}")
        draft.write_text(json.dumps({"state": state, "digest": digest}), "utf-8")
        draft.replace(kept)
    return digest


def picture_class(worker_class: Mapping[str, Any], details: Mapping[str, Any], model: Model) -> str:
    """A digest of what decides a picture beside its key: the worker's class, how it loads the model, who judges."""
    checker = model.checker and [model.checker.name, model.checker.source, model.checker.revision]
    whole = {**worker_class, **details, "judged_by": checker or model.safety_checker}
    return hashlib.sha256(canonical_json(whole).encode()).hexdigest()


def _components(model: Model, folder: Path) -> dict[str, str]:
    """The digest of each component, as an import would store it."""
    from worker.checkpoints import layout

    found = {}
    for name in layout.components(model):
        files = {
            layout.plain_name(file.name): _checksum(file) for file in sorted(layout.component_files(folder / name))
        }
        found[name] = manifest.digest_of(files)
    return found


def _checksum(file: Path) -> File:
    if file.name == "config.json":
        data = model_store.without_writers(file.read_text("utf-8-sig")).encode()
        return File(len(data), hashlib.sha256(data).hexdigest())
    return model_store.checksum(file)
