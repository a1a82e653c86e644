"""Imports a model on this host: download, convert once, test-render, store for all workers here.

One import at a time on a host, by a lock that the kernel frees with its process. `worker.models.store` makes it atomic;
downloads survive a crash. Raises ModelRefused. Imports torch only to convert. `common.catalog.manifest` describes the
folder.
"""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from common.catalog import catalog, families, manifest
from common.catalog.catalog import Model
from common.catalog.families import Family
from common.catalog.manifest import ModelManifest
from common.disks import RESERVE_BYTES, is_full
from common.errors import Error, ModelRefused, NanImage
from common.recipes.img2img import InputImage
from common.recipes.recipe import Recipe
from common.sentences import Sentence
from worker.checkpoints import kinds, layout
from worker.checkpoints.text_files import read_object
from worker.models import hub, sentence
from worker.models import store as model_store
from worker.models.family import tell_family
from worker.models.store import SourceFiles
from worker.pipelines.base import DeviceLost, ImageRequest, Pipeline, RenderedImage

Report = Callable[[str, int, int], None]  # phase (wait, fetch, convert or check), done, total
Load = Callable[[Model], Pipeline]

DOWNLOADS = ".fetching"
SINGLE_FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
TEST_STEPS, TEST_STRENGTH = 3, 0.7
LOCK_RETRY_S = 0.5


def ensure_imported(model: Model, store: Path, load: Load, report: Report) -> Model:
    """The model with the folder to load it from: its own if that has safetensors, else its import.

    Imports it if no process has yet; waits while another process imports.
    """
    if model.source_path and layout.is_safetensors(model, model.source_path):
        return model
    imported = find(model, store)
    if imported is None:
        with import_lock(model, store, report):
            imported = find(model, store) or import_model(model, store, load, report)
    return with_local_path(model, store, imported)


def find(model: Model, store: Path) -> ModelManifest | None:
    """The import of this model; None if there is none, or one of another source, revision or state of its files."""
    imported = manifest.read(store / model.name)
    if (
        imported is None
        or imported.source != model.source
        or model.revision not in (None, imported.revision, imported.requested_revision)
        or (model.source_path and imported.source_state != model_store.source_state(model.source_path))
        or not {*layout.components(model)} <= imported.components.keys()
    ):
        return None
    return imported


def with_local_path(model: Model, store: Path, imported: ModelManifest) -> Model:
    return replace(model, source_path=store / model.name, revision=imported.revision, sha256=imported.sha256)


@contextmanager
def import_lock(model: Model, store: Path, report: Report) -> Iterator[None]:
    """Hold the host's lock for imports. Any unexpected error inside becomes ModelRefused.

    One that fails on a full disk leaves nothing behind there, not even what was downloaded.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with (store / ".lock").open("w") as lock:
            while not _try_lock(lock):
                report("wait", 0, 1)
                time.sleep(LOCK_RETRY_S)
            try:
                yield
            except Exception:
                if is_full(store):  # what other programs of this disk need more than the next try
                    shutil.rmtree(_download_folder(model, store), ignore_errors=True)
                    model_store.recover(store)
                raise
    except (Error, DeviceLost):
        raise
    except OSError as error:
        reason = error.strerror or error
        raise ModelRefused(sentence("store_not_writable", model=model.name, folder=store, error=reason)) from error
    except Exception as error:  # damaged or foreign files make the libraries raise anything
        reason = layout.first_line(error)
        raise ModelRefused(sentence("import_failed", model=model.name, error=reason)) from error


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def import_model(
    model: Model,
    store: Path,
    load: Load,
    report: Report,
    entry: Mapping[str, Any] | None = None,
    like: Model | None = None,
) -> ModelManifest:
    """Import the model; the caller holds `import_lock`.

    With an entry, that entry completed by the files' own values is stored with the model. `like` is for a single file.
    """
    model_store.recover(store)
    if entry is None and (own := catalog.read_entry(model.name, store)).get("source") == model.source:
        entry = own  # a worker repeats the import of a model that the catalogue lacks
    if entry is not None:
        model, entry = tell_family(model, entry)
    source = _fetch_source(model, store, report, like)
    if entry is not None:
        entry = _complete_entry(model, entry, source)
        made = catalog.model_from_entry(model.name, entry, store)
        model = replace(made, revision=model.revision, checker=model.checker)
    layout.validate(model, source.folder)
    components = {}
    for done, name in enumerate(names := layout.components(model)):
        report("convert", done, len(names))
        components[name] = model_store.store_component(model, source, name, store)
    report("check", 0, 1)
    imported = model_store.write_manifest(model, source, components, store, entry)
    _test_render(with_local_path(model, store, imported), store / model_store.DRAFT_MODEL, load)
    model_store.commit(model.name, store)
    shutil.rmtree(_download_folder(model, store), ignore_errors=True)
    model_store.delete_unused(store)
    report("check", 1, 1)
    return imported


# The source


def _fetch_source(model: Model, store: Path, report: Report, like: Model | None) -> SourceFiles:
    folder = model.source_path or (Path(model.source) if model.source.startswith("/") else None)
    if folder is None:
        return _download(model, store, report)
    if folder.is_file():
        return _split(model, folder, like, _download_folder(model, store) / "split")
    if not folder.is_dir():
        raise ModelRefused(sentence("source_folder_missing", model=model.name, folder=folder))
    return SourceFiles(folder)


def _download(model: Model, store: Path, report: Report) -> SourceFiles:
    """Download what says what the model is before its gigabytes, and refuse it as soon as it is no model for a farm."""
    repo = hub.list_files(model)
    folder, done = _download_folder(model, store) / repo.revision, 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report("fetch", done, repo.bytes)

    hub.download(model, repo.stages()[0], folder, on_bytes)
    index = layout.check_index(model, folder)
    layout.check_classes(model, index)
    layout.check_complete(model, repo.missing)
    _, texts, weights = repo.stages()
    hub.download(model, texts, folder, on_bytes)
    kinds.check_configs(model, folder)
    _check_disk_space(model, store, repo, folder)
    hub.download(model, weights, folder, on_bytes)
    return SourceFiles(folder, repo.revision, repo.licence, is_ours=True)


def _split(model: Model, file: Path, like: Model | None, target: Path) -> SourceFiles:
    kinds.check_file(model, file, file.name)
    if file.suffix.lower() not in SINGLE_FILES:
        suffixes = ", ".join(SINGLE_FILES)
        raise ModelRefused(sentence("source_file_unsupported", model=model.name, file=file.name, suffixes=suffixes))
    if like is None:
        raise ModelRefused(sentence("source_file_without_like", model=model.name, file=file.name))
    from worker.models import convert

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    convert.split_single_file(model, file, like, target)
    return SourceFiles(target, is_ours=True)


def _check_disk_space(model: Model, store: Path, repo: hub.RepoFiles, folder: Path) -> None:
    """For the rest of the download, for the safetensors that pickles are converted to, and what is kept free."""
    downloaded = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    pickles = sum(file.bytes for file in repo.files if file.path.endswith(".bin"))
    needed, free = repo.bytes - downloaded + pickles + RESERVE_BYTES, shutil.disk_usage(store).free
    if needed > free:
        raise ModelRefused(sentence("disk_full", model=model.name, folder=store, needed=needed / 1e9, free=free / 1e9))


def _download_folder(model: Model, store: Path) -> Path:
    return store / DOWNLOADS / hashlib.sha256(model.source.encode()).hexdigest()[:16]


def _complete_entry(model: Model, entry: Mapping[str, Any], source: SourceFiles) -> dict[str, Any]:
    """The entry, with values from the model's files, or else of its family, where the operator gave none.

    Raises ModelRefused.
    """

    def config(name: str) -> dict[str, Any]:
        try:
            values = read_object(source.folder / name)
        except (OSError, ValueError):
            return {}  # validation refuses the model next
        return values

    facts, index = families.families()[entry["family"]], config("model_index.json")
    known = {"licence": source.licence or "unknown", **facts.defaults}
    if facts.distilled and facts.distilled.describes(config(facts.distilled.file)):
        known |= facts.distilled.defaults
    if facts.denoiser == "unet":  # there are models for several sizes and lengths
        text_encoder = config("text_encoder/config.json")
        side = int(config("unet/config.json").get("sample_size") or 64)
        side *= 2 ** (len(config("vae/config.json").get("block_out_channels") or [0] * 4) - 1)
        longest = min(text_encoder.get("max_position_embeddings") or facts.token_limit, facts.token_limit)
        limit = min(config("tokenizer/tokenizer_config.json").get("model_max_length") or longest, longest)
        known |= {"width": side, "height": side, "token_limit": limit}
    if "scheduler" not in entry:
        declared = config("scheduler/scheduler_config.json").get("_class_name")
        known["scheduler"] = _scheduler_of(model, declared or (index.get("scheduler") or [None])[-1], facts)
    return {**known, **entry}


def _scheduler_of(model: Model, class_name: str | None, facts: Family) -> str:
    """The name of the scheduler that the files declare. Raises ModelRefused if the family has no such scheduler."""
    from worker.pipelines import schedulers

    if class_name is None:
        return facts.schedulers[0]  # validation refuses the model next
    known = schedulers.class_names(facts.schedulers)
    if class_name not in known:
        classes = ", ".join(sorted(known))
        raise ModelRefused(sentence("scheduler_unknown", model=model.name, scheduler=class_name, known=classes))
    return known[class_name]


# The test


def _test_render(model: Model, draft: Path, load: Load) -> None:
    """Load the draft, and render an image in a few steps and another from it, which the VAE encodes.

    Raises ModelRefused.
    """
    recipe = Recipe(
        prompt="画",
        negative_prompt=model.negative_prompt,
        model=model.name,
        width=model.width,
        height=model.height,
        steps=TEST_STEPS,
        scheduler=model.scheduler,
        guidance=model.guidance,
        seeds=(0,),
        mode="text2image",
        format="png",
    )
    source = InputImage(id=UUID(int=0), sha256="", key="", width=model.width, height=model.height)
    changed = recipe.model_copy(update={"mode": "image2image", "source": source, "strength": TEST_STRENGTH})
    pipeline = load(replace(model, source_path=draft))
    try:
        image = _generate(pipeline, ImageRequest(recipe, 0), sentence("test_image_nan", model=model.name))
        encoded = ImageRequest(changed, 0, source=image.pixels)
        _generate(pipeline, encoded, sentence("test_encoder_nan", model=model.name))
    finally:
        pipeline.close()


def _generate(pipeline: Pipeline, request: ImageRequest, if_nan: Sentence) -> RenderedImage:
    model = pipeline.model
    (result,) = pipeline.generate([request], lambda step, steps: None)
    if isinstance(result, NanImage):
        raise ModelRefused(if_nan)
    if isinstance(result, Exception):
        raise ModelRefused(sentence("test_image_failed", model=model.name, error=layout.first_line(result)))
    if result.unchecked:
        raise ModelRefused(sentence("test_image_unchecked", model=model.name))
    if result.pixels.shape != (model.height, model.width, 3):
        raise ModelRefused(sentence("test_image_misshapen", model=model.name, shape=result.pixels.shape))
    return result


def throttled(report: Report, every_s: float) -> Report:
    """Report each phase at most so often, but always its start and its end."""
    reported: dict[str, float] = {}

    def throttle(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - reported.get(phase, float("-inf")) >= every_s:
            reported[phase] = now
            report(phase, done, total)

    return throttle
