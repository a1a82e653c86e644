"""The folder of imported models, written: components by their content, and models of links to them.

Everything is written beside its place, synced and renamed, so readers (`common.catalog.manifest`) see complete models
only. One process at a time may write; `worker.models.importer` locks. Imports torch only to convert.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.catalog import manifest
from common.catalog.catalog import Model
from common.catalog.manifest import COMPONENTS, ENTRY, MANIFEST, Component, File, ModelManifest
from worker.checkpoints import layout, plain_files

DRAFT_MODEL, DRAFT_COMPONENT, OLD = ".new", ".new-part", ".old-"
KEPT = (  # of model_index.json, beside the components
    "_class_name",
    "force_zeros_for_empty_prompt",
    "is_distilled",
    "requires_safety_checker",
)
LIBRARIES = ("diffusers", "torch", "transformers")
WRITERS = (
    "_diffusers_version",
    "_name_or_path",
    "transformers_version",
)  # config keys in which equal components differ


@dataclass(frozen=True)
class SourceFiles:
    """A model's files as published, in diffusers' layout."""

    folder: Path
    revision: str | None = None  # the hub's commit
    licence: str | None = None
    is_ours: bool = False  # downloaded or split for this import only


def store_component(model: Model, source: SourceFiles, name: str, store: Path) -> Component:
    """Store a component under its digest, converted if need be. Does nothing if another model has stored it."""
    draft, folder = store / DRAFT_COMPONENT, source.folder / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    if name in model.facts.with_weights and layout.weight_files(folder)[0].suffix != ".safetensors":
        from worker.models import convert

        convert.convert_weights(model, source.folder, name, draft)
    elif name.startswith("tokenizer") and not (folder / "tokenizer.json").is_file():
        from worker.models import convert

        convert.convert_tokenizer(folder, draft)
    else:
        # Our own files need no second copy on disk; those of others may change later.
        add = os.link if source.is_ours and not folder.is_symlink() else shutil.copyfile
        plain_files.write(folder, draft, add)
    if (config := draft / "config.json").is_file():
        _remove_writers(config)
    files = _checksums(draft)
    component = Component(manifest.digest_of(files), files)
    place = store / COMPONENTS / component.digest
    if place.exists() and _checksums(place) != files:
        shutil.rmtree(place)  # damaged since
    if place.exists():
        shutil.rmtree(draft)
    else:
        _sync(draft)
        place.parent.mkdir(exist_ok=True)
        draft.rename(place)
        _sync(place.parent)
    return component


def _remove_writers(config: Path) -> None:
    kept = without_writers(config.read_text("utf-8"))
    config.unlink()  # it may be a hard link
    _write(config, kept)


def without_writers(config: str) -> str:
    """A component's config as it is stored: without the keys that say which library has written it."""
    kept = {key: value for key, value in json.loads(config).items() if key not in WRITERS}
    return json.dumps(kept, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def is_intact(imported: ModelManifest, store: Path) -> bool:
    """Whether all files have the checksums that they were written with."""
    return all(
        (store / imported.name / name).is_dir() and _checksums(store / imported.name / name) == component.files
        for name, component in imported.components.items()
    )


def _checksums(folder: Path) -> dict[str, File]:
    return {file.name: checksum(file) for file in sorted(folder.iterdir())}


def checksum(file: Path) -> File:
    with file.open("rb") as content:
        return File(file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest())


def write_manifest(
    model: Model,
    source: SourceFiles,
    components: Mapping[str, Component],
    store: Path,
    entry: Mapping[str, Any] | None,
) -> ModelManifest:
    """Write the draft of a model of these components, with its entry if the catalogue has none. Then `commit` it."""
    folder = store / DRAFT_MODEL
    folder.mkdir()
    classes = layout.read_index(source.folder)
    kept = {name: value for name, value in classes.items() if name in components or name in KEPT}
    _write(folder / "model_index.json", json.dumps(kept, indent=2) + "\n")
    for name, component in components.items():
        (folder / name).symlink_to(Path("..", COMPONENTS, component.digest))
    imported = ModelManifest(
        name=model.name,
        source=model.source,
        revision=source.revision or revision_of({name: component.digest for name, component in components.items()}),
        requested_revision=model.revision,
        source_state=source_state(model.source_path) if model.source_path else "",
        family=model.family,
        licence=model.licence.name,
        index=checksum(folder / "model_index.json"),
        components=components,
        provenance={
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": {library: version(library) for library in LIBRARIES},
        },
    )
    _write(folder / MANIFEST, imported.to_json())
    if entry is not None:
        _write(folder / ENTRY, _toml(model.name, {**entry, "revision": imported.revision}))
    return imported


def revision_of(components: Mapping[str, str]) -> str:
    """What identifies a local model: a digest of the digests of its components, by name."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(components.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def source_state(source: Path) -> str:
    """A digest of a folder's or file's names, sizes and modification times."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def commit(name: str, store: Path) -> None:
    """Move the draft to its place; it replaces an earlier import of this name."""
    draft, place, old = store / DRAFT_MODEL, store / name, store / f"{OLD}{name}"
    _sync(draft)
    if place.exists():
        place.rename(old)
    draft.rename(place)
    _sync(store)
    shutil.rmtree(old, ignore_errors=True)


def recover(store: Path) -> None:
    """Clean up after a killed import: delete its drafts, and restore the model that it was about to replace."""
    for draft in (DRAFT_MODEL, DRAFT_COMPONENT):
        shutil.rmtree(store / draft, ignore_errors=True)
    for old in store.glob(f"{OLD}*"):
        place = store / old.name.removeprefix(OLD)
        if place.exists():
            shutil.rmtree(old)
        else:
            old.rename(place)


def delete_unused(store: Path) -> None:
    """Delete components that no model has."""
    used = {component.digest for model in manifest.read_all(store) for component in model.components.values()}
    for place in (store / COMPONENTS).iterdir():
        if place.name not in used:
            shutil.rmtree(place)


def _write(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def _sync(folder: Path) -> None:
    """Flush a folder and its files to disk, so that no rename is durable before its content."""
    for path in (*(file for file in folder.iterdir() if file.is_file() and not file.is_symlink()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _toml(name: str, entry: Mapping[str, Any]) -> str:
    """An entry of the catalogue; strings, numbers and booleans are the same in TOML as in JSON."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    return "\n".join([f"[models.{json.dumps(name)}]", *lines, ""])
