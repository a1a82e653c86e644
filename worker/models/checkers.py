"""Imports safety checkers of the farm's own: once on a host, for all models whose images they judge.

A checker lies in the store as a model does, so models that bring an equal one share its files. Raises ModelRefused.
`worker.models.importer` imports models; imports torch only to convert and to try.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import checkers, layout
from worker.models import hub, importer, sentence
from worker.models import store as model_store
from worker.models.importer import Report
from worker.models.store import SourceFiles

EXTRACTOR = "preprocessor_config.json"
INDEX = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}


def is_here(model: Model, store: Path) -> bool:
    """Whether this host has what judges the model's images, beside its own files."""
    return model.checker is None or importer.find(model.checker, store) is not None


def ensure_imported(model: Model, store: Path, report: Report) -> None:
    """Import the farm's checker that judges this model's images, unless this host has it; waits for another import."""
    if model.checker is None or is_here(model, store):
        return
    with checkers.refusing(model), importer.import_lock(model.checker, store, report):
        if not is_here(model, store):
            _import(model, model.checker, store, report)


def list_files(model: Model, store: Path) -> dict[str, int]:
    """The bytes of each file that `ensure_imported` would read."""
    if model.checker is None or is_here(model, store):
        return {}
    checker = model.checker
    if checker.source_path is None:
        found = {file.path: file.bytes for file in hub.list_files(checker).files}
    else:
        source = checker.source_path
        files = [file for name in INDEX for file in _files(checker, source, name)]
        found = {file.relative_to(source).as_posix(): file.stat().st_size for file in files}
    return {f"{checker.name}/{path}": size for path, size in found.items()}


def _import(model: Model, checker: Model, store: Path, report: Report) -> None:
    from worker.pipelines import assembly

    model_store.recover(store)
    downloads = store / importer.DOWNLOADS / hashlib.sha256(checker.name.encode()).hexdigest()[:16]
    source = _fetch(checker, downloads, report)
    checkers.check_files(checker, source.folder)
    components = {}
    for done, name in enumerate(INDEX):
        report("convert", done, len(INDEX))
        components[name] = model_store.store_component(checker, source, name, store)
    report("check", 0, 1)
    model_store.write_manifest(checker, source, components, store, None)
    assembly.check_checker(replace(model, checker=replace(checker, import_path=store / model_store.DRAFT_MODEL)))
    model_store.commit(checker.name, store)
    shutil.rmtree(downloads, ignore_errors=True)
    model_store.delete_unused(store)
    report("check", 1, 1)


def _fetch(checker: Model, downloads: Path, report: Report) -> SourceFiles:
    """The published files, in the layout of an import."""
    if checker.source_path is not None:
        if not checker.source_path.is_dir():
            raise ModelRefused(sentence("source_folder_missing", model=checker.name, folder=checker.source_path))
        return SourceFiles(_arrange(checker, checker.source_path, downloads / "arranged"))
    repo, done = hub.list_files(checker), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report("fetch", done, repo.bytes)

    folder = downloads / repo.revision
    hub.download(checker, repo, folder, on_bytes)
    return SourceFiles(_arrange(checker, folder, downloads / "arranged"), repo.revision, repo.licence)


def _arrange(checker: Model, source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    for name in INDEX:
        (target / name).mkdir(parents=True)
        for file in _files(checker, source, name):
            (target / name / file.name).symlink_to(file.resolve())
    (target / "model_index.json").write_text(json.dumps(INDEX), "utf-8")
    return target


def _files(checker: Model, source: Path, component: str) -> list[Path]:
    """Of a component; `source` has a folder for each, as a Stable Diffusion has, or is itself the checker."""
    folder = source / component if (source / component).is_dir() else source
    is_extractor = component == "feature_extractor"
    return [file for file in layout.component_files(folder) if (file.name == EXTRACTOR) == is_extractor]
