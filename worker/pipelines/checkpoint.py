"""The files of a model in their folder, looked over before torch sees any of them.

Raises ModelRefused in one sentence whatever is wrong. Imports no torch and executes nothing that it reads; what can
only be told from the loaded weights is checked by `worker.pipelines.loader`.
"""

import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.catalog.catalog import Model
from common.errors import ModelRefused

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
CHECKER = ("feature_extractor", "safety_checker")
WEIGHTED = ("safety_checker", "text_encoder", "unet", "vae")
SHARED = ("safety_checker", "text_encoder", "vae")
TAKE_LORAS = ("CLIPTextModel", "UNet2DConditionModel")  # a LoRA is put on one model, so it has these for itself
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?\.(safetensors|bin)")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
TEXTS = (".json", ".txt", ".model")


def find(model: Model) -> Path:
    """The folder with the model's files, looked over."""
    if model.source_path is None:
        raise refused(model, f"it was not imported on this host: run `huafang models import {model.name}`")
    if not model.source_path.is_dir():
        raise refused(model, f"there is no folder {model.source_path}")
    validate(model, model.source_path)
    return model.source_path


def sizes(model: Model) -> dict[Hashable, int] | None:
    """The bytes of the weights of each part, if the model's files are here; a part that models share has one name."""
    folder = model.source_path or (model.import_path if model.is_local else None)
    if folder is None:
        return None
    there = [name for name in components_with_weights(model) if (folder / name).is_dir()]
    return {
        component_id(model, folder, name): sum(file.stat().st_size for file in weights(folder / name)) for name in there
    }


def component_id(model: Model, folder: Path, name: str) -> Hashable:
    """What two models must have in common to have the part once in memory."""
    if not is_shared(folder, name):
        return model.name, name
    files = sorted(file.resolve() for file in (folder / name).iterdir())
    return model.precision, *((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def is_shared(folder: Path, name: str) -> bool:
    return name in SHARED and index(folder)[name][1] not in TAKE_LORAS


def is_safe(model: Model, folder: Path) -> bool:
    """Whether all its weights are safetensors already: nothing is to be converted, and it can be read as it lies."""
    folders = [folder / name for name in components_with_weights(model) if (folder / name).is_dir()]
    return all(file.suffix == ".safetensors" for part in folders for file in weights(part))


def refused(model: Model, reason: str) -> ModelRefused:
    return ModelRefused(f"The model {model.name} is refused: {reason}.")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# Looking over


def validate(model: Model, folder: Path) -> None:
    """Everything there, everything whole, and nothing that the catalogue's checksums do not know."""
    _parts(model, folder)
    if model.sha256:
        _checksums(model, folder)
    if not any((folder / "tokenizer" / name).is_file() for name in VOCABULARIES):
        raise refused(model, "its folder tokenizer holds no vocabulary (neither tokenizer.json nor vocab.txt)")
    for part in components_with_weights(model):
        for file in weights(folder / part):
            check_not_truncated(model, file)


def refuse_without(model: Model, missing: Sequence[str]) -> None:
    """Raises ModelRefused if there are parts that the model cannot do without."""
    if set(missing) & set(CHECKER):
        raise refused(model, "it has no safety checker; its operator can do without by safety_checker = false")
    if missing:
        raise refused(model, f"its files have no {' and no '.join(missing)}")


def components(model: Model) -> tuple[str, ...]:
    return (*COMPONENTS, *CHECKER) if model.safety_checker else COMPONENTS


def index(folder: Path) -> dict[str, list[str | None]]:
    """`model_index.json`: the library and the class of each part."""
    classes = json.loads((folder / "model_index.json").read_text("utf-8"))
    if not isinstance(classes, dict):
        raise ValueError("it is not an object")
    return classes


def components_with_weights(model: Model) -> tuple[str, ...]:
    return tuple(part for part in components(model) if part in WEIGHTED)


def weights(folder: Path) -> list[Path]:
    """The files that a part is loaded from."""
    return [folder / name for name in preferred_weights(file.name for file in folder.iterdir())]


def files(folder: Path) -> list[Path]:
    """Those of a part that it is loaded from: no code, no second form of the weights."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return [folder / name for name in names if name.endswith(TEXTS) or name in preferred_weights(names)]


def preferred_weights(names: Iterable[str]) -> list[str]:
    """Weights as safetensors where there are such, else as pickles; no variants."""
    found = sorted(name for name in names if WEIGHTS.fullmatch(name))
    return [name for name in found if name.endswith(".safetensors")] or found


def _parts(model: Model, folder: Path) -> None:
    try:
        classes = index(folder)
    except (OSError, ValueError) as error:
        raise refused(model, f"its model_index.json cannot be read ({error})") from error
    missing = [
        part for part in components(model) if not (folder / part).is_dir() or classes.get(part, [None])[0] is None
    ]
    refuse_without(model, missing)
    for part in components_with_weights(model):
        if not weights(folder / part):
            raise refused(model, f"its folder {part} holds no weights")


def _checksums(model: Model, folder: Path) -> None:
    here = ("model_index.json", *(f"{part}/" for part in components(model)))
    expected = {path: sha256 for path, sha256 in model.sha256.items() if path.startswith(here)}
    for path, sha256 in expected.items():
        if not (folder / path).is_file():
            raise refused(model, f"{path} is missing")
        with (folder / path).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                raise refused(model, f"the sha256 of {path} is not what it must be: restore or import it again")
    loaded = [f"{part}/{file.name}" for part in components(model) for file in sorted((folder / part).iterdir())]
    for path in ("model_index.json", *loaded):
        if path not in expected and (path.endswith(TEXTS) or WEIGHTS.fullmatch(path.rpartition("/")[2])):
            raise refused(model, f"the catalogue has checksums, but none of {path}")


def check_not_truncated(model: Model, file: Path) -> None:
    """Whether it was cut short."""
    if file.suffix != ".safetensors":
        return  # a pickle is for torch to read
    try:
        with safe_open(file, framework="numpy"):
            pass  # compares the header with the length of the file
    except (SafetensorError, OSError) as error:
        raise refused(model, f"{file.parent.name}/{file.name} is damaged or cut short ({error})") from error
