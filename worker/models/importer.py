"""Importing a model: brought to this host, converted once, tried out, and from then on shared by all workers of it.

One import at a time on a host, by a lock that dies with its holder. What is half done is never seen: it lies beside, is
synced and renamed. What was fetched outlives a break. Raises ModelRefused in one sentence. Imports no torch before
there is something to convert; what lies where is written in `common.catalog.manifest`.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from common.catalog import catalog, manifest
from common.catalog.catalog import Model
from common.catalog.manifest import ModelManifest
from common.errors import Error, NanImage
from common.recipes.recipe import Recipe
from worker.models import hub
from worker.models import store as model_store
from worker.models.store import SourceFiles
from worker.pipelines import checkpoint
from worker.pipelines.base import DeviceLost, ImageRequest, Pipeline
from worker.pipelines.checkpoint import refused

Report = Callable[[str, int, int], None]  # the phase, how much of it is done, of how much
Load = Callable[[Model], Pipeline]

FETCHING = ".fetching"
SINGLE_FILES = (".ckpt", ".safetensors")
TEST_STEPS = 3
LOOK_AGAIN_S = 0.5


def ensure_imported(model: Model, store: Path, load: Load, report: Report) -> Model:
    """The model as it can be read on this host: as it lies if that is safetensors in a folder, else as it is imported.

    Imports it if nobody has; who comes meanwhile waits, and finds it.
    """
    if model.source_path and checkpoint.is_safe(model, model.source_path):
        return model
    found = find(model, store)
    if found is None:
        with import_lock(model, store, report):
            found = find(model, store) or import_model(model, store, load, report)
    return with_local_path(model, store, found)


def find(model: Model, store: Path) -> ModelManifest | None:
    """What was imported, if that is what the model is now."""
    there = manifest.read(store / model.name)
    if (
        there is None
        or there.source != model.source
        or model.revision not in (None, there.revision, there.requested_revision)
        or (model.source_path and there.source_state != model_store.state(model.source_path))
        or not {*checkpoint.components(model)} <= there.components.keys()
    ):
        return None
    return there


def with_local_path(model: Model, store: Path, there: ModelManifest) -> Model:
    return replace(model, source_path=store / model.name, revision=there.revision, sha256=there.sha256)


@contextmanager
def import_lock(model: Model, store: Path, report: Report) -> Iterator[None]:
    try:
        store.mkdir(parents=True, exist_ok=True)
        with (store / ".lock").open("w") as lock:
            while not _has_lock(lock):
                report("wait", 0, 1)
                time.sleep(LOOK_AGAIN_S)
            yield
    except (Error, DeviceLost):
        raise
    except OSError as error:
        raise refused(model, f"it cannot be imported into {store} ({error.strerror or error})") from error
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        raise refused(model, f"it cannot be imported ({checkpoint.first_line(error)})") from error


def _has_lock(lock: IO[str]) -> bool:
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
    """Do it, `alone`. With an entry it is a model of that entry, completed by what its files say of themselves."""
    model_store.recover(store)
    published = _bring(model, store, report, like)
    if entry is None and (own := catalog.read_entry(model.name, store)).get("source") == model.source:
        entry = own  # a worker imports again what has no other entry
    if entry is not None:
        entry = _completed(entry, published)
        model = replace(catalog.model_from_entry(model.name, entry, store), revision=model.revision)
    checkpoint.validate(model, published.folder)
    parts = {}
    for done, name in enumerate(names := checkpoint.components(model)):
        report("convert", done, len(names))
        parts[name] = model_store.store_component(model, published, name, store)
    report("check", 0, 1)
    made = model_store.write_manifest(model, published, parts, store, entry)
    _try_out(with_local_path(model, store, made), store / model_store.DRAFT_MODEL, load)
    model_store.commit(model.name, store)
    shutil.rmtree(_fetching(model, store), ignore_errors=True)
    model_store.delete_unused(store)
    report("check", 1, 1)
    return made


# Bringing


def _bring(model: Model, store: Path, report: Report, like: Model | None) -> SourceFiles:
    folder = model.source_path or (Path(model.source) if model.source.startswith("/") else None)
    if folder is None:
        return _from_hub(model, store, report)
    if folder.is_file():
        return _from_file(model, folder, like, _fetching(model, store) / "split")
    if not folder.is_dir():
        raise refused(model, f"there is no folder {folder}")
    return SourceFiles(folder)


def _from_hub(model: Model, store: Path, report: Report) -> SourceFiles:
    listing = hub.list_files(model)
    folder = _fetching(model, store) / listing.revision
    _has_room(model, store, listing, folder)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report("fetch", done, listing.bytes)

    hub.download(model, listing, folder, on_bytes)
    return SourceFiles(folder, listing.revision, listing.licence, is_ours=True)


def _from_file(model: Model, file: Path, like: Model | None, target: Path) -> SourceFiles:
    if file.suffix not in SINGLE_FILES:
        raise refused(model, f"{file.name} is none of {', '.join(SINGLE_FILES)}")
    if like is None:
        raise refused(
            model,
            f"{file.name} says neither how its parts are made nor how prompts are read: name a model of the same kind "
            "by --like",
        )
    from worker.models import convert

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    convert.split_single_file(model, file, like, target)
    return SourceFiles(target, is_ours=True)


def _has_room(model: Model, store: Path, listing: hub.RepoFiles, folder: Path) -> None:
    """For what is still to come, and for what pickles are converted to."""
    fetched = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    pickles = sum(file.bytes for file in listing.files if file.path.endswith(".bin"))
    needed, free = listing.bytes - fetched + pickles, shutil.disk_usage(store).free
    if needed > free:
        raise refused(
            model,
            f"it needs {needed / 1e9:.1f} GB in {store}, where {free / 1e9:.1f} GB are free: make room, or "
            "name another folder in HUAFANG_MODELS_DIR",
        )


def _fetching(model: Model, store: Path) -> Path:
    return store / FETCHING / hashlib.sha256(model.source.encode()).hexdigest()[:16]


def _completed(entry: Mapping[str, Any], published: SourceFiles) -> dict[str, Any]:
    """What an operator left out of an entry, as the files say it."""
    from worker.pipelines import loader

    def config(name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((published.folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            return {}  # what is missing is told by the look over
        return found

    text_encoder = config("text_encoder/config.json")
    side = int(config("unet/config.json").get("sample_size") or 64)
    side *= 2 ** (len(config("vae/config.json").get("block_out_channels") or [0] * 4) - 1)
    longest = text_encoder.get("max_position_embeddings") or 77
    limit = min(config("tokenizer/tokenizer_config.json").get("model_max_length") or longest, longest)
    is_chinese = (config("model_index.json").get("text_encoder") or [""])[-1] == "BertModel"
    told = {
        "family": "stable-diffusion-zh" if is_chinese else "stable-diffusion",
        "licence": published.licence or "unknown",
        "width": side,
        "height": side,
        "scheduler": loader.scheduler_named(config("scheduler/scheduler_config.json").get("_class_name")),
        "token_limit": limit,
    }
    return {**told, **entry}


# Trying out


def _try_out(model: Model, draft: Path, load: Load) -> None:
    """A picture of a few steps: it loads, and what comes out is a picture."""
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
    paints = load(replace(model, source_path=draft))
    try:
        (painted,) = paints.paint([ImageRequest(recipe, 0)], lambda step, steps: None)
    finally:
        paints.close()
    if isinstance(painted, NanImage):
        raise refused(model, "its test picture is made of numbers that are none: its weights are broken")
    if isinstance(painted, Exception):
        raise refused(model, f"its test picture failed ({painted})")
    if painted.pixels.shape != (model.height, model.width, 3):
        raise refused(model, f"its test picture has the shape {painted.pixels.shape}")


def throttled(report: Report, every_s: float) -> Report:
    """Told no more often than that, but of each phase its beginning."""
    told: dict[str, float] = {}

    def sometimes(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - told.get(phase, float("-inf")) >= every_s:
            told[phase] = now
            report(phase, done, total)

    return sometimes
