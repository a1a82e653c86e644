"""Downloads models from the Hugging Face hub: only the files that a pipeline is loaded from, and no byte twice.

An interrupted download resumes, also in another process, and a complete file is compared with the hub's sha256.
(`snapshot_download` starts an interrupted file anew.) Raises ModelRefused.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from httpx2 import InvalidURL, TransportError  # huggingface_hub's HTTP client
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, hf_raise_for_status, logging
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints.kinds import check_names
from worker.checkpoints.layout import TEXT_SUFFIXES, check_complete, component_file_names, components, first_line
from worker.models import sentence

logging.set_verbosity_error()  # its warnings are errors here

PAGE = "https://huggingface.co"
INDEX = "model_index.json"
TIMEOUT_S = 30
CHUNK_BYTES = 2**20  # what a connection that breaks loses at most
ATTEMPTS = 5  # without a byte in between
BUSY = (408, 429)
RETRY_S = 2


@dataclass(frozen=True)
class HubFile:
    path: str
    bytes: int
    sha256: str | None  # None for small files


@dataclass(frozen=True)
class RepoFiles:
    """The files of a repository to download, at one commit."""

    revision: str  # the commit
    files: tuple[HubFile, ...]
    licence: str | None
    missing: tuple[str, ...] = ()  # components that it lacks

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def stages(self) -> "tuple[RepoFiles, RepoFiles, RepoFiles]":
        """The index, the other texts, and the weights: what says what a model is comes before its gigabytes."""
        index = tuple(file for file in self.files if file.path == INDEX)
        texts = tuple(file for file in self.files if file.path.endswith(TEXT_SUFFIXES) and file not in index)
        weights = tuple(file for file in self.files if file not in (*index, *texts))
        return replace(self, files=index), replace(self, files=texts), replace(self, files=weights)


def list_files(model: Model) -> RepoFiles:
    """Raises ModelRefused, also when the repository is known to be something else."""
    with _refusing(model):
        info = HfApi().model_info(model.source, revision=model.revision, timeout=TIMEOUT_S, files_metadata=True)
    published = {file.rfilename: file for file in info.siblings or ()}
    files = tuple(
        HubFile(path, published[path].size or 0, published[path].lfs.sha256 if published[path].lfs else None)
        for path in select_files(published, components(model))
        if path in published
    )
    folders = {path.partition("/")[0] for path in published}
    missing = tuple(name for name in components(model) if name not in folders)
    check_names(model, published)
    if INDEX not in published:
        check_complete(model, missing)
    assert info.sha
    return RepoFiles(info.sha, files, getattr(info.card_data, "license", None), missing)


def read_index(model: Model) -> dict[str, Any]:
    """`model_index.json`, without its other files. Empty if there is none, or none that is an object of JSON."""
    with _refusing(model):
        try:
            path = hf_hub_url(model.source, "model_index.json", revision=model.revision)
            response = get_session().get(path, headers=build_hf_headers(), timeout=TIMEOUT_S)
            hf_raise_for_status(response)
        except EntryNotFoundError:
            return {}
    try:
        index = json.loads(response.content)
    except ValueError:
        return {}
    return index if isinstance(index, dict) else {}


def select_files(published: Iterable[str], components: Iterable[str]) -> list[str]:
    """The files that these components are loaded from, of all files of a repository."""
    selected = [INDEX]
    for component in components:
        names = [name for folder, _, name in (file.rpartition("/") for file in published) if folder == component]
        selected += [f"{component}/{name}" for name in component_file_names(names)]
    return selected


def download(model: Model, repo: RepoFiles, folder: Path, on_bytes: Callable[[int], None]) -> None:
    """Download the files that the folder lacks. `on_bytes` gets bytes as they arrive, and less than 0 for lost ones."""
    for file in repo.files:
        target = folder / file.path
        if target.is_file():
            on_bytes(file.bytes)
        else:
            _download_file(model, repo.revision, file, target, on_bytes)


def _download_file(model: Model, revision: str, file: HubFile, target: Path, on_bytes: Callable[[int], None]) -> None:
    partial = target.with_name(f"{target.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _refusing(model), partial.open("ab") as content:
        on_bytes(content.tell())
        if content.tell() > file.bytes:
            _restart(content, on_bytes)
        _fetch_rest(hf_hub_url(model.source, file.path, revision=revision), content, file.bytes, on_bytes)
    if not _is_intact(partial, file):
        partial.unlink()
        raise ModelRefused(sentence("hub_file_damaged", model=model.name, file=file.path))
    partial.rename(target)


def _is_intact(partial: Path, file: HubFile) -> bool:
    if file.sha256 is None:
        return partial.stat().st_size == file.bytes
    with partial.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _fetch_rest(url: str, content: IO[bytes], size: int, on_bytes: Callable[[int], None]) -> None:
    """Append what the file lacks; resume after a broken connection or a busy answer."""
    failures = 0
    while (start := content.tell()) < size:
        try:
            return _fetch(url, content, on_bytes)
        except (TransportError, HfHubHTTPError) as error:
            failures = 1 if content.tell() > start else failures + 1
            is_final = isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY
            if is_final or failures == ATTEMPTS:
                raise
            time.sleep(RETRY_S)


def _fetch(url: str, content: IO[bytes], on_bytes: Callable[[int], None]) -> None:
    start, token = content.tell(), get_token()
    headers = {"Accept-Encoding": "identity"}  # offsets count the bytes of the file itself
    if start:
        headers["Range"] = f"bytes={start}-"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if start and response.status_code == 200:  # the server ignored the range
            _restart(content, on_bytes)
        for chunk in response.iter_bytes(CHUNK_BYTES):
            content.write(chunk)
            on_bytes(len(chunk))


def _restart(content: IO[bytes], on_bytes: Callable[[int], None]) -> None:
    on_bytes(-content.tell())
    content.seek(0)
    content.truncate()


@contextmanager
def _refusing(model: Model) -> Iterator[None]:
    """Turn the errors of the hub's client into ModelRefused."""
    name, page = model.name, f"{PAGE}/{model.source}"
    try:
        yield
    except GatedRepoError as error:
        raise ModelRefused(sentence("hub_gated", model=name, page=page)) from error
    except RevisionNotFoundError as error:
        raise ModelRefused(sentence("hub_revision_unknown", model=name, page=page, revision=model.revision)) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelRefused(sentence("hub_repository_unknown", model=name, page=page)) from error
    except (TransportError, OfflineModeIsEnabled) as error:
        raise ModelRefused(sentence("hub_unreachable", model=name, source=model.source)) from error
    except (ImportError, InvalidURL, ValueError) as error:  # when the client is made
        if isinstance(error, ValueError) and "proxy" not in str(error):
            raise
        raise ModelRefused(sentence("hub_proxy_unusable", model=name, reason=first_line(error))) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ModelRefused(sentence("hub_error", model=name, page=page, status=status)) from error
    except OSError as error:
        reason = first_line(error)
        raise ModelRefused(sentence("hub_file_not_written", model=name, source=model.source, error=reason)) from error
