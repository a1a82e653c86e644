"""Fetching from the Hugging Face hub: only the files that a model is loaded from, and never a byte of them twice.

A file that was cut off goes on where it stopped, also in another process, and is compared with the hub's sha256 when it
is there. (`snapshot_download` begins such a file anew.) Raises ModelRefused in one sentence that says what to do.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import TransportError  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, logging

from common.catalog.catalog import Model
from worker.pipelines.checkpoint import TEXTS, components, first_line, preferred_weights, refuse_without, refused

logging.set_verbosity_error()  # what it warns of is said here, in one sentence

PAGE = "https://huggingface.co"
UNREACHABLE = (TransportError, OfflineModeIsEnabled)


@dataclass(frozen=True)
class HubFile:
    path: str
    bytes: int
    sha256: str | None  # the hub has none of small files


@dataclass(frozen=True)
class RepoFiles:
    """What of a repository is to be fetched, at the commit that its revision stands at now."""

    revision: str
    files: tuple[HubFile, ...]
    licence: str | None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def list_files(model: Model) -> RepoFiles:
    with _in_one_sentence(model):
        info = HfApi().model_info(model.source, revision=model.revision, timeout=30, files_metadata=True)
    there = {file.rfilename: file for file in info.siblings or ()}
    files = tuple(
        HubFile(path, there[path].size or 0, there[path].lfs.sha256 if there[path].lfs else None)
        for path in wanted(there, components(model))
        if path in there
    )
    folders = {path.partition("/")[0] for path in there}
    refuse_without(model, [part for part in components(model) if part not in folders])  # before gigabytes are fetched
    assert info.sha
    return RepoFiles(info.sha, files, getattr(info.card_data, "license", None))


def wanted(files: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The files to fetch, of all that a repository has."""
    chosen = ["model_index.json"]
    for part in parts:
        names = [name for folder, _, name in (file.rpartition("/") for file in files) if folder == part]
        chosen += [f"{part}/{name}" for name in names if name.endswith(TEXTS)]
        chosen += [f"{part}/{name}" for name in preferred_weights(names)]
    return chosen


def download(model: Model, listing: RepoFiles, folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Bring all files of the listing into the folder; those that are there already stay. Tells bytes as they come."""
    for file in listing.files:
        whole = folder / file.path
        if not whole.is_file():
            _fetch_file(model, listing.revision, file, whole, on_bytes)
        else:
            on_bytes(file.bytes)


def _fetch_file(model: Model, revision: str, file: HubFile, whole: Path, on_bytes: Callable[[int], None]) -> None:
    part = whole.with_name(f"{whole.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with _in_one_sentence(model), part.open("ab") as content:
        had = content.tell()
        if had > file.bytes:
            content.truncate(had := 0)
        on_bytes(had)
        url = hf_hub_url(model.source, file.path, revision=revision)
        http_get(
            url,
            content,
            resume_size=had,
            headers=build_hf_headers(),
            expected_size=file.bytes,
            tqdm_class=_telling(on_bytes, had),
        )
    if file.sha256:
        with part.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            part.unlink()
            raise refused(model, f"{file.path} came damaged from the hub: try again")
    part.rename(whole)


def _telling(on_bytes: Callable[[int], None], had: int) -> type:
    """The hub's client shows progress in a bar of tqdm: this one only passes it on."""

    class Telling:
        def __init__(self, *given: object, initial: int = 0, **named: object) -> None:
            on_bytes(initial - had)  # less than nothing where the hub sends all again

        def __enter__(self) -> "Telling":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, count: float | None = 1) -> None:
            on_bytes(int(count or 0))

        def close(self) -> None: ...

    return Telling


@contextmanager
def _in_one_sentence(model: Model) -> Iterator[None]:
    page = f"{PAGE}/{model.source}"
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
            model,
            f"the hub cannot be reached to fetch {model.source}: go online and try again, what was fetched is kept; "
            "or import it from a local folder",
        ) from error
    except HfHubHTTPError as error:
        raise refused(
            model, f"the hub answered {error.response.status_code} for {page}: try again later, or look at HF_TOKEN"
        ) from error
    except OSError as error:
        raise refused(model, f"{model.source} could not be saved ({first_line(error)})") from error
