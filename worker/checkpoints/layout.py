"""The files of a checkpoint, laid out as diffusers does, and their validation before torch reads any of them.

Every problem raises ModelRefused. Imports no torch and runs no code from the files; what only the loaded weights show
is checked by `worker.checkpoints.loader`.
"""

import hashlib
import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.catalog.catalog import Model
from common.catalog.families import Family
from common.errors import ModelRefused
from worker.checkpoints import kinds, sentence
from worker.checkpoints.text_files import read_object

LORA_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")  # a LoRA changes them, as it does the denoiser
VARIANTS = ("fp32", "fp16", "bf16")  # of the same weights, in the order of preference; `non_ema` is another model
WEIGHT_FILE = re.compile(
    rf"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>{'|'.join(VARIANTS)}))?"
    rf"(?P<shard>-\d+-of-\d+)?(\.(?P<old_variant>{'|'.join(VARIANTS)}))?\.(?P<format>safetensors|bin)"
)
SHARD_INDEX = re.compile(
    rf"(?P<stem>diffusion_pytorch_model|pytorch_model|model)\.(?P<format>safetensors|bin)"
    rf"\.index(\.(?P<variant>{'|'.join(VARIANTS)}))?\.json"
)
NEVER_READ = ("adapter_config.json",)  # transformers would load the LoRA that it names
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
    parts = _parts_on_host(model)
    return None if parts is None else {component_id(*part): _weight_bytes(*part) for part in parts}


def sizes_by_name(model: Model) -> dict[str, int] | None:
    """The same by the component's name."""
    parts = _parts_on_host(model)
    return None if parts is None else {part[2]: _weight_bytes(*part) for part in parts}


def _parts_on_host(model: Model) -> list[tuple[Model, Path, str]] | None:
    """Each component, that of the farm's checker if it judges the images, with the entry and the folder it is of."""
    folder = model.source_path or (model.import_path if model.is_local else None)
    if folder is None:
        return None
    places = [(model, folder)]
    if model.checker and model.checker.import_path:
        places.append((model.checker, model.checker.import_path))
    named = [(entry, place, name) for entry, place in places for name in components_with_weights(entry)]
    return [(entry, place, name) for entry, place, name in named if (place / name).is_dir()]


def _weight_bytes(model: Model, folder: Path, name: str) -> int:
    return sum(file.stat().st_size for file in weight_files(folder / name))


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
    """The components that the model is loaded from; a safety checker and its extractor if its own judges its images."""
    return tuple(model.facts.components) if model.safety_checker is True else model.facts.needed


def components_with_weights(model: Model) -> tuple[str, ...]:
    return tuple(name for name in components(model) if name in model.facts.with_weights)


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`: the library and the class of each component."""
    return read_object(folder / "model_index.json")


def class_of(folder: Path, name: str) -> str | None:
    """The class that the checkpoint declares for a component. None if it has no such component."""
    return (read_index(folder).get(name) or [None, None])[1]


def weight_files(folder: Path) -> list[Path]:
    """The files that a component's weights are loaded from."""
    return [folder / name for name in preferred_weights(file.name for file in folder.iterdir())]


def component_files(folder: Path) -> list[Path]:
    """The files that a component is loaded from: no code, no second format of the weights."""
    return [folder / name for name in component_file_names(file.name for file in folder.iterdir() if file.is_file())]


def component_file_names(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    weights = preferred_weights(names)
    return [
        name for name in names if name in weights or (name.endswith(TEXT_SUFFIXES) and not _is_left_out(name, weights))
    ]


def _is_left_out(name: str, weights: Sequence[str]) -> bool:
    return name in NEVER_READ or (SHARD_INDEX.fullmatch(name) is not None and name != shard_index(weights))


def preferred_weights(names: Iterable[str]) -> list[str]:
    """The weights in one format: all precision before variants, safetensors before pickles, one file before shards."""
    found = sorted((_rank(match), name) for name in names if (match := WEIGHT_FILE.fullmatch(name)))
    for _, group in itertools.groupby(found, key=lambda ranked: ranked[0]):
        return [name for _, name in group]
    return []


def _rank(weights: re.Match[str]) -> tuple[int, bool, bool]:
    variant = weights["variant"] or weights["old_variant"]
    return VARIANTS.index(variant) + 1 if variant else 0, weights["format"] == "bin", weights["shard"] is not None


def shard_index(weights: Sequence[str]) -> str | None:
    """The name of the file that says which shard has which tensor; None for weights that are one file."""
    match = WEIGHT_FILE.fullmatch(weights[0]) if weights else None
    if match is None or match["shard"] is None:
        return None
    variant = match["variant"] or match["old_variant"]
    return f"{match['stem']}.{match['format']}.index.{f'{variant}.' if variant else ''}json"


def plain_name(name: str) -> str:
    """The name without its variant, which the libraries load without being told."""
    if match := WEIGHT_FILE.fullmatch(name):
        return f"{match['stem']}{match['shard'] or ''}.{match['format']}"
    if match := SHARD_INDEX.fullmatch(name):
        return f"{match['stem']}.{match['format']}.index.json"
    return name


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
    for name in components(model):
        for file in component_files(folder / name):
            if file.name.endswith(TEXT_SUFFIXES):
                kinds.check_no_pointer(model, file)
    kinds.check_configs(model, folder)
    for name in components_with_weights(model):
        _check_shards(model, folder / name)
        for file in weight_files(folder / name):
            kinds.check_file(model, file, f"{name}/{file.name}")
            if file.suffix == ".safetensors":
                check_not_truncated(model, file)


def check_index(model: Model, folder: Path) -> dict[str, Any]:
    """The index, if it can be read and names a pipeline of this farm."""
    try:
        classes = read_index(folder)
    except (OSError, ValueError) as error:
        raise ModelRefused(sentence("model_index_unreadable", model=model.name, error=error)) from error
    kinds.check_index(model, classes)
    return classes


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
        if name in components(model) and known and found is not None and found not in known:
            accepted = ", ".join(known)
            raise ModelRefused(
                sentence("model_class_unknown", model=model.name, component=name, found=found, known=accepted)
            )


def is_distilled(facts: Family, folder: Path) -> bool | None:
    """Whether a checkpoint of the family says that it needs no guidance. None if its files do not tell."""
    if (distilled := facts.distilled) is None:
        return None
    return distilled.describes(read_object(folder / distilled.file))


def check_not_truncated(model: Model, file: Path) -> None:
    """Check safetensors by their header. A pickle is checked when it is read."""
    try:
        with safe_open(file, framework="numpy"):
            pass  # compares the header with the length of the file
    except (SafetensorError, OSError) as error:
        path = f"{file.parent.name}/{file.name}"
        raise ModelRefused(sentence("model_file_damaged", model=model.name, file=path, error=error)) from error


def _check_components(model: Model, folder: Path) -> None:
    kinds.check_folder(model, folder)
    classes = check_index(model, folder)
    check_classes(model, classes)
    names = components(model)
    check_complete(
        model,
        [name for name in names if not (folder / name).is_dir() or classes.get(name, [None])[0] is None],
    )
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


def _check_shards(model: Model, folder: Path) -> None:
    """Each file that the shards' index names must be one of them: the index is never followed anywhere else."""
    files = [file.name for file in weight_files(folder)]
    if (index := shard_index(files)) is None:
        return
    try:
        named = {str(name) for name in read_object(folder / index)["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        path = f"{folder.name}/{index}"
        raise ModelRefused(sentence("model_shards_unreadable", model=model.name, file=path, error=error)) from error
    if missing := sorted(named - {*files}):
        path = f"{folder.name}/{missing[0]}"
        raise ModelRefused(sentence("model_file_missing", model=model.name, file=path))


def _check_checksums(model: Model, folder: Path) -> None:
    prefixes = ("model_index.json", *(f"{name}/" for name in components(model)))
    expected = {path: sha256 for path, sha256 in model.sha256.items() if path.startswith(prefixes)}
    check_sums(model, folder, expected)
    check_listed(model, folder, expected, ("model_index.json",))


def check_sums(model: Model, folder: Path, expected: Mapping[str, str]) -> None:
    """Raises ModelRefused for a file that is missing or has another sha256 than the expected one of its path."""
    for path, sha256 in expected.items():
        if not (folder / path).is_file():
            raise ModelRefused(sentence("model_file_missing", model=model.name, file=path))
        with (folder / path).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                raise ModelRefused(sentence("model_file_changed", model=model.name, file=path))


def check_listed(model: Model, folder: Path, expected: Mapping[str, str], others: Sequence[str] = ()) -> None:
    """Raises ModelRefused for a file that is read and has no sha256: of the components, or one of the `others`."""
    loaded = [f"{name}/{file.name}" for name in components(model) for file in component_files(folder / name)]
    for path in (*others, *loaded):
        if path not in expected:
            raise ModelRefused(sentence("model_file_without_checksum", model=model.name, file=path))
