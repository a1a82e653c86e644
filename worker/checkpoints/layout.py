"""The files of a checkpoint, laid out as diffusers does, and their validation before torch reads any of them.

Every problem raises ModelRefused. Imports no torch and runs no code from the files; what only the loaded weights show
is checked by `worker.checkpoints.loader`.
"""

import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.catalog.catalog import Model
from common.catalog.families import Family
from common.errors import ModelRefused
from worker.checkpoints import sentence

LORA_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")  # a LoRA changes them, as it does the denoiser
WEIGHT_FILE = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?\.(safetensors|bin)")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
TEXT_SUFFIXES = (".json", ".txt", ".model")


def find(model: Model) -> Path:
    """The folder with the model's files, validated. Raises ModelRefused."""
    if model.source_path is None:
        raise ModelRefused(sentence("model_not_imported", model=model.name))
    if not model.source_path.is_dir():
        raise ModelRefused(sentence("model_folder_missing", model=model.name, folder=model.source_path))
    validate(model, model.source_path)
    return model.source_path


def component_sizes(model: Model) -> dict[Hashable, int] | None:
    """The bytes of the weights of each component by its id; None while the model is not on this host."""
    folder = model.source_path or (model.import_path if model.is_local else None)
    if folder is None:
        return None
    return {
        component_id(model, folder, name): sum(file.stat().st_size for file in weight_files(folder / name))
        for name in components_with_weights(model)
        if (folder / name).is_dir()
    }


def component_id(model: Model, folder: Path, name: str) -> Hashable:
    """Equal for components of two models that can be in memory once."""
    if not is_shareable(model, folder, name):
        return model.name, name
    files = sorted(file.resolve() for file in (folder / name).iterdir())
    precision = model.component_precision.get(name, model.precision)
    return precision, *((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def is_shareable(model: Model, folder: Path, name: str) -> bool:
    """Whether models may have the component in memory once: no LoRA changes it."""
    return name != model.facts.denoiser and class_of(folder, name) not in LORA_CLASSES


def is_safetensors(model: Model, folder: Path) -> bool:
    """Whether all weights are safetensors, so that the model can be loaded without an import."""
    folders = [folder / name for name in components_with_weights(model) if (folder / name).is_dir()]
    return all(file.suffix == ".safetensors" for component in folders for file in weight_files(component))


def not_loadable(model: Model, error: BaseException) -> ModelRefused:
    return ModelRefused(sentence("model_not_loadable", model=model.name, error=first_line(error)))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# Files


def components(model: Model) -> tuple[str, ...]:
    """The components that the model is loaded from; a safety checker and its extractor unless the entry has none."""
    return tuple(model.facts.components) if model.safety_checker else model.facts.needed


def components_with_weights(model: Model) -> tuple[str, ...]:
    return tuple(name for name in components(model) if name in model.facts.with_weights)


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`: the library and the class of each component."""
    classes: Any = json.loads((folder / "model_index.json").read_text("utf-8"))
    if not isinstance(classes, dict):
        raise ValueError("it is not an object")
    return classes


def class_of(folder: Path, name: str) -> str | None:
    """The class that the checkpoint declares for a component. None if it has no such component."""
    return (read_index(folder).get(name) or [None, None])[1]


def weight_files(folder: Path) -> list[Path]:
    """The files that a component's weights are loaded from."""
    return [folder / name for name in preferred_weights(file.name for file in folder.iterdir())]


def component_files(folder: Path) -> list[Path]:
    """The files that a component is loaded from: no code, no second format of the weights."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return [folder / name for name in names if name.endswith(TEXT_SUFFIXES) or name in preferred_weights(names)]


def preferred_weights(names: Iterable[str]) -> list[str]:
    """Safetensors if there are any, else pickles; no variants."""
    found = sorted(name for name in names if WEIGHT_FILE.fullmatch(name))
    return [name for name in found if name.endswith(".safetensors")] or found


# Validation


def validate(model: Model, folder: Path) -> None:
    """Check that all files are there, none is cut short, and all match the catalogue's checksums if it has any."""
    _check_components(model, folder)
    _check_guided(model, folder)
    if model.sha256:
        _check_checksums(model, folder)
    for tokenizer in (name for name in components(model) if name.startswith("tokenizer")):
        if not any((folder / tokenizer / name).is_file() for name in VOCABULARIES):
            raise ModelRefused(sentence("model_vocabulary_missing", model=model.name, folder=tokenizer))
    for name in components_with_weights(model):
        for file in weight_files(folder / name):
            check_not_truncated(model, file)


def check_complete(model: Model, missing: Sequence[str]) -> None:
    """Raises ModelRefused if any component is missing."""
    if set(missing) & set(model.facts.optional):
        raise ModelRefused(sentence("model_safety_checker_missing", model=model.name))
    if missing:
        raise ModelRefused(sentence("model_components_missing", model=model.name, components=", ".join(missing)))


def check_classes(model: Model, index: dict[str, Any]) -> None:
    """Raises ModelRefused if the checkpoint declares other classes than those of its family."""
    if (declared := index.get("_class_name")) not in (None, *model.facts.pipelines):
        family = model.facts.name
        raise ModelRefused(sentence("model_of_other_family", model=model.name, declared=declared, family=family))
    for name, known in model.facts.components.items():
        found = (index.get(name) or [None, None])[1]
        if name in components(model) and known and found not in known:
            accepted = ", ".join(known)
            raise ModelRefused(
                sentence("model_class_unknown", model=model.name, component=name, found=found, known=accepted)
            )


def is_distilled(facts: Family, folder: Path) -> bool | None:
    """Whether a checkpoint of the family says that it needs no guidance. None if its files do not tell."""
    if (distilled := facts.distilled) is None:
        return None
    return distilled.describes(json.loads((folder / distilled.file).read_text("utf-8")))


def check_not_truncated(model: Model, file: Path) -> None:
    """Check safetensors by their header. A pickle is checked when torch reads it."""
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="numpy"):
            pass  # compares the header with the length of the file
    except (SafetensorError, OSError) as error:
        path = f"{file.parent.name}/{file.name}"
        raise ModelRefused(sentence("model_file_damaged", model=model.name, file=path, error=error)) from error


def _check_components(model: Model, folder: Path) -> None:
    try:
        classes = read_index(folder)
    except (OSError, ValueError) as error:
        raise ModelRefused(sentence("model_index_unreadable", model=model.name, error=error)) from error
    names = components(model)
    check_complete(
        model,
        [name for name in names if not (folder / name).is_dir() or classes.get(name, [None])[0] is None],
    )
    check_classes(model, classes)
    for name in components_with_weights(model):
        if not weight_files(folder / name):
            raise ModelRefused(sentence("model_weights_missing", model=model.name, component=name))


def _check_guided(model: Model, folder: Path) -> None:
    """Guidance would be ignored in silence by a distilled model, and missing in one that reads it."""
    try:
        distilled = is_distilled(model.facts, folder)
    except (OSError, ValueError) as error:
        raise not_loadable(model, error) from error
    if distilled is not None and distilled == model.guided:
        guided = str(not distilled).lower()
        raise ModelRefused(sentence("model_guided_mismatch", model=model.name, guided=guided))


def _check_checksums(model: Model, folder: Path) -> None:
    prefixes = ("model_index.json", *(f"{name}/" for name in components(model)))
    expected = {path: sha256 for path, sha256 in model.sha256.items() if path.startswith(prefixes)}
    for path, sha256 in expected.items():
        if not (folder / path).is_file():
            raise ModelRefused(sentence("model_file_missing", model=model.name, file=path))
        with (folder / path).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                raise ModelRefused(sentence("model_file_changed", model=model.name, file=path))
    loaded = [f"{name}/{file.name}" for name in components(model) for file in sorted((folder / name).iterdir())]
    for path in ("model_index.json", *loaded):
        if path not in expected and (path.endswith(TEXT_SUFFIXES) or WEIGHT_FILE.fullmatch(path.rpartition("/")[2])):
            raise ModelRefused(sentence("model_file_without_checksum", model=model.name, file=path))
