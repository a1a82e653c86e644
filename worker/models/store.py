"""Where an import writes: parts by their content and models of them, beside, then synced and renamed.

What is there is read by `common.catalog.manifest`. One process at a time writes, which `worker.models.importer` sees
to. Imports no torch before there is something to convert.
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
from worker.pipelines import checkpoint

DRAFT_MODEL, DRAFT_PART, OLD = ".new", ".new-part", ".old-"
LIBRARIES = ("diffusers", "torch", "transformers")
WRITERS = ("_diffusers_version", "_name_or_path", "transformers_version")  # of a config: equal parts differ in them


@dataclass(frozen=True)
class SourceFiles:
    """A model's files as their author published them, laid out as diffusers does."""

    folder: Path
    revision: str | None = None  # the hub's
    licence: str | None = None
    is_ours: bool = False  # fetched for this import only


def store_component(model: Model, published: SourceFiles, name: str, store: Path) -> Component:
    """Write a part beside, and give it its place by its content; whoever has it there already has it for us too."""
    draft, source = store / DRAFT_PART, published.folder / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    if name in checkpoint.WEIGHTED and checkpoint.weights(source)[0].suffix != ".safetensors":
        from worker.models import convert

        convert.as_safetensors(model, published.folder, name, draft)
    elif name == "tokenizer" and not (source / "tokenizer.json").is_file():
        from worker.models import convert

        convert.with_json(source, draft)
    else:
        # What was fetched for us need not lie there twice; what is somebody else's may change.
        bring_over = os.link if published.is_ours and not source.is_symlink() else shutil.copyfile
        for file in checkpoint.files(source):
            bring_over(file, draft / file.name)
    if (config := draft / "config.json").is_file():
        _without_writers(config)
    files = _sums(draft)
    part = Component(manifest.digest_of(files), files)
    place = store / COMPONENTS / part.digest
    if place.exists() and _sums(place) != files:
        shutil.rmtree(place)  # damaged meanwhile
    if place.exists():
        shutil.rmtree(draft)
    else:
        _sync(draft)
        place.parent.mkdir(exist_ok=True)
        draft.rename(place)
        _sync(place.parent)
    return part


def _without_writers(config: Path) -> None:
    told = json.loads(config.read_text("utf-8"))
    kept = {key: value for key, value in told.items() if key not in WRITERS}
    config.unlink()  # it may be a link to what was fetched
    _write(config, json.dumps(kept, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def is_whole(there: ModelManifest, store: Path) -> bool:
    """Whether its files are still those that were written."""
    return all(
        (store / there.name / name).is_dir() and _sums(store / there.name / name) == part.files
        for name, part in there.components.items()
    )


def _sums(folder: Path) -> dict[str, File]:
    return {file.name: _sum(file) for file in sorted(folder.iterdir())}


def _sum(file: Path) -> File:
    with file.open("rb") as content:
        return File(file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest())


def write_manifest(
    model: Model, published: SourceFiles, parts: Mapping[str, Component], store: Path, entry: Mapping[str, Any] | None
) -> ModelManifest:
    """Write a model that has these parts beside, with its entry if the catalogue has none."""
    folder = store / DRAFT_MODEL
    folder.mkdir()
    classes = checkpoint.index(published.folder)
    kept = {name: value for name, value in classes.items() if name in parts or name.startswith("_class")}
    _write(folder / "model_index.json", json.dumps(kept, indent=2) + "\n")
    for name, part in parts.items():
        (folder / name).symlink_to(Path("..", COMPONENTS, part.digest))
    contents = hashlib.sha256("".join(f"{name} {part.digest}\n" for name, part in sorted(parts.items())).encode())
    made = ModelManifest(
        name=model.name,
        source=model.source,
        revision=published.revision or contents.hexdigest()[:40],
        requested_revision=model.revision,
        source_state=state(model.source_path) if model.source_path else "",
        family=model.family,
        licence=model.licence.name,
        index=_sum(folder / "model_index.json"),
        components=parts,
        provenance={
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": {library: version(library) for library in LIBRARIES},
        },
    )
    _write(folder / MANIFEST, made.to_json())
    if entry is not None:
        _write(folder / ENTRY, _toml(model.name, {**entry, "revision": made.revision}))
    return made


def state(source: Path) -> str:
    """Of a folder or a file: changes when anything of it does."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    seen = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def commit(name: str, store: Path) -> None:
    """What lies beside takes its place, or that of the import before."""
    draft, place, old = store / DRAFT_MODEL, store / name, store / f"{OLD}{name}"
    _sync(draft)
    if place.exists():
        place.rename(old)
    draft.rename(place)
    _sync(store)
    shutil.rmtree(old, ignore_errors=True)


def recover(store: Path) -> None:
    """What a killed import left: all of it is written again, but what was there before it comes back."""
    for draft in (DRAFT_MODEL, DRAFT_PART):
        shutil.rmtree(store / draft, ignore_errors=True)
    for old in store.glob(f"{OLD}*"):
        place = store / old.name.removeprefix(OLD)
        if place.exists():
            shutil.rmtree(old)
        else:
            old.rename(place)


def delete_unused(store: Path) -> None:
    """Parts that no model has any more."""
    used = {part.digest for model in manifest.read_all(store) for part in model.components.values()}
    for place in (store / COMPONENTS).iterdir():
        if place.name not in used:
            shutil.rmtree(place)


def _write(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def _sync(folder: Path) -> None:
    """To the disk, before its name says that it is there."""
    for path in (*(file for file in folder.iterdir() if file.is_file() and not file.is_symlink()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _toml(name: str, entry: Mapping[str, Any]) -> str:
    """As in the catalogue: its strings, numbers and booleans are written as JSON writes them."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    return "\n".join([f"[models.{json.dumps(name)}]", *lines, ""])
