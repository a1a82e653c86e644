"""The files of a model: found in their folder or fetched from the hub, and looked over before torch sees any of them.

Raises ModelRefused in one sentence whatever is wrong. Imports no torch and executes nothing that it reads; what can
only be told from the loaded weights is checked by `worker.pipeline`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import TransportError  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from common.catalog import Model
from common.errors import ModelRefused

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
CHECKER = ("feature_extractor", "safety_checker")
WEIGHTED = ("safety_checker", "text_encoder", "unet", "vae")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?\.(safetensors|bin)")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
TEXTS = (".json", ".txt", ".model")
UNREACHABLE = (TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)


def find(model: Model) -> tuple[Path, str | None]:
    """The folder with the model's files, looked over, and the commit they are of. Fetches what is only on the hub."""
    if model.folder:
        folder, revision = model.folder, model.revision
        if not folder.is_dir():
            raise refused(model, f"there is no folder {folder}")
    else:
        folder, revision = _fetch(model)
    look_over(model, folder)
    return folder, revision


def size(model: Model) -> int | None:
    """The bytes of the model's weights, if its files are here."""
    if not model.folder:
        return None
    folders = [model.folder / part for part in weighted(model)]
    return sum(file.stat().st_size for folder in folders if folder.is_dir() for file in weights(folder))


def refused(model: Model, reason: str) -> ModelRefused:
    return ModelRefused(f"The model {model.name} is refused: {reason}.")


# Looking over


def look_over(model: Model, folder: Path) -> None:
    """Everything there, everything whole, and nothing that the catalogue's checksums do not know."""
    _parts(model, folder)
    if model.sha256:
        _checksums(model, folder)
    if not any((folder / "tokenizer" / name).is_file() for name in VOCABULARIES):
        raise refused(model, "its folder tokenizer holds no vocabulary (neither tokenizer.json nor vocab.txt)")
    for part in weighted(model):
        for file in weights(folder / part):
            _whole(model, file)


def parts(model: Model) -> tuple[str, ...]:
    return (*PARTS, *CHECKER) if model.safety_checker else PARTS


def index(folder: Path) -> dict[str, list[str | None]]:
    """`model_index.json`: the library and the class of each part."""
    classes = json.loads((folder / "model_index.json").read_text("utf-8"))
    if not isinstance(classes, dict):
        raise ValueError("it is not an object")
    return classes


def weighted(model: Model) -> tuple[str, ...]:
    return tuple(part for part in parts(model) if part in WEIGHTED)


def weights(folder: Path) -> list[Path]:
    """The files that a part is loaded from."""
    return [folder / name for name in _of_one_kind(file.name for file in folder.iterdir())]


def _of_one_kind(names: Iterable[str]) -> list[str]:
    """Weights as safetensors where there are such, else as pickles; no variants."""
    found = sorted(name for name in names if WEIGHTS.fullmatch(name))
    return [name for name in found if name.endswith(".safetensors")] or found


def _parts(model: Model, folder: Path) -> None:
    try:
        classes = index(folder)
    except (OSError, ValueError) as error:
        raise refused(model, f"its model_index.json cannot be read ({error})") from error
    missing = [part for part in parts(model) if not (folder / part).is_dir() or classes.get(part, [None])[0] is None]
    if set(missing) & set(CHECKER):
        raise refused(model, "it has no safety checker; the operator can do without by safety_checker = false")
    if missing:
        raise refused(model, f"its files have no {' and no '.join(missing)}")
    for part in weighted(model):
        if not weights(folder / part):
            raise refused(model, f"its folder {part} holds no weights")


def _checksums(model: Model, folder: Path) -> None:
    here = ("model_index.json", *(f"{part}/" for part in parts(model)))
    expected = {path: sha256 for path, sha256 in model.sha256.items() if path.startswith(here)}
    for path, sha256 in expected.items():
        if not (folder / path).is_file():
            raise refused(model, f"{path} is missing")
        with (folder / path).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                raise refused(model, f"the sha256 of {path} is not the catalogue's")
    loaded = [f"{part}/{file.name}" for part in parts(model) for file in sorted((folder / part).iterdir())]
    for path in ("model_index.json", *loaded):
        if path not in expected and (path.endswith(TEXTS) or WEIGHTS.fullmatch(path.rpartition("/")[2])):
            raise refused(model, f"the catalogue has checksums, but none of {path}")


def _whole(model: Model, file: Path) -> None:
    if file.suffix != ".safetensors":
        return  # a pickle is for torch to read
    try:
        with safe_open(file, framework="numpy"):
            pass  # compares the header with the length of the file
    except (SafetensorError, OSError) as error:
        raise refused(model, f"{file.parent.name}/{file.name} is damaged or cut short ({error})") from error


# Fetching


def resolve_revision(model: Model) -> str:
    """The commit that the model's revision (its main branch, if it names none) stands at on the hub now."""
    with _in_one_sentence(model):
        return _listing(model)[0]


def _fetch(model: Model) -> tuple[Path, str | None]:
    with _in_one_sentence(model):
        revision = model.revision or "main"
        try:
            files = wanted(_listing(model)[1], parts(model))
            folder = Path(snapshot_download(model.source, revision=revision, allow_patterns=files))
        except UNREACHABLE:
            fetched = try_to_load_from_cache(model.source, "model_index.json", revision=revision)
            if not isinstance(fetched, str):
                raise
            folder = Path(fetched).parent  # what was fetched once serves while the hub is away
        return folder, folder.name


def _listing(model: Model) -> tuple[str, list[str]]:
    """The commit and the names of its files."""
    info = HfApi().model_info(model.source, revision=model.revision, timeout=30)
    assert info.sha
    return info.sha, [file.rfilename for file in info.siblings or ()]


def wanted(files: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The files to fetch, of all that a repository has."""
    chosen = ["model_index.json"]
    for part in parts:
        names = [name for folder, _, name in (file.rpartition("/") for file in files) if folder == part]
        chosen += [f"{part}/{name}" for name in names if name.endswith(TEXTS)]
        chosen += [f"{part}/{name}" for name in _of_one_kind(names)]
    return chosen


@contextmanager
def _in_one_sentence(model: Model) -> Iterator[None]:
    page = f"https://huggingface.co/{model.source}"
    try:
        yield
    except GatedRepoError as error:
        raise refused(
            model, f"the hub gives it only to who accepted its licence: accept it at {page} and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise refused(model, f"{page} has no revision {model.revision}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise refused(model, f"{page} does not exist, or needs an HF_TOKEN that may read it") from error
    except UNREACHABLE as error:
        raise refused(
            model, f"the hub cannot be reached to fetch {model.source}: go online, or set its source to a local folder"
        ) from error
    except HfHubHTTPError as error:
        raise refused(
            model, f"the hub answered {error.response.status_code} for {page}: try again later, or look at HF_TOKEN"
        ) from error
    except OSError as error:
        raise refused(model, f"{model.source} could not be saved ({error})") from error
