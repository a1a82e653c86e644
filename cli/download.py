"""Writing what is downloaded: each file whole or not at all. A dataset into a folder, checked against its sha256s.

A file is `NAME.part` until it is complete and correct. One of a dataset is resumed where its connection broke; where
the disk is full none is left. The manifest is downloaded first, SHA256SUMS last. Knows no command.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cli import sentence
from cli.client import RETRY_DELAYS_S, Client, Json, api_path
from cli.errors import CONFLICT, Failure, FarmUnavailable, LinkExpired
from cli.shell import format_bytes
from common.datasets.layout import FOLDERS, MANIFEST, SUMS, TOP_LEVEL_FILES
from common.disks import NO_ROOM

PAGE = 200
CONCURRENCY = 4  # files

OnProgress = Callable[[int], None]  # gets the number of bytes gained, or lost (< 0)


@dataclass(frozen=True)
class RemoteFile:
    dataset_id: str
    page: str  # the cursor of the page that lists it
    path: str
    sha256: str
    url: str  # a presigned link

    def with_new_link(self, client: Client) -> "RemoteFile":
        page = client.get(api_path("datasets", self.dataset_id, "files"), limit=PAGE, cursor=self.page)
        return replace(self, url=next(one["url"] for one in page["items"] if one["path"] == self.path))


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, or replace it by one. Raises Failure, and then leaves what was there."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise Failure(sentence("not_writable", path=path, reason=error.strerror)) from None


def prepare_folder(out: Path, plan: str, *, overwrite: bool) -> None:
    """Create or clear the folder for the dataset of this plan. Raises Failure when it holds anything else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = read_plan(out)
        if present == plan or not any(name for name in out.iterdir() if name.suffix != ".part"):
            return
        if present is None:
            raise Failure(sentence("folder_not_empty", folder=out), CONFLICT)
        if not overwrite:
            raise Failure(sentence("folder_has_another_dataset", folder=out), CONFLICT)
        delete_dataset(out)
    except OSError as error:
        raise Failure(sentence("not_writable", path=out, reason=error.strerror)) from None


def read_plan(folder: Path) -> str | None:
    """The digest of the plan of the dataset in this folder, complete or not; None where there is no dataset."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def delete_dataset(folder: Path) -> None:
    """Delete a dataset and no other file of its folder. The manifest goes last: it marks the rest as a dataset."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in sorted(TOP_LEVEL_FILES, key=lambda name: name == MANIFEST):
        (folder / name).unlink(missing_ok=True)


def download(client: Client, dataset: Json, out: Path, on_progress: OnProgress) -> None:
    """Download a ready dataset into a folder; what is there already counts as progress too.

    Raises Failure, before anything is written, where the disk has no room for it.
    """
    check_room(out, dataset["bytes"])
    listed = list_files(client, dataset["id"])
    sums, manifest = next(listed), next(listed)
    (out / SUMS).unlink(missing_ok=True)  # without it the dataset is incomplete
    download_file(client, manifest, out, on_progress)
    with ThreadPoolExecutor(CONCURRENCY, "download") as pool:
        while files := list(islice(listed, PAGE)):
            downloads = [pool.submit(download_file, client, file, out, on_progress) for file in files]
            try:
                for one in downloads:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    download_file(client, sums, out, on_progress)


def check_room(out: Path, size: int) -> None:
    needed = size - sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if needed > (free := shutil.disk_usage(out).free):
        raise Failure(sentence("no_room", folder=out, needed=format_bytes(needed), free=format_bytes(free)))


def list_files(client: Client, dataset_id: str) -> Iterator[RemoteFile]:
    """All files of a dataset: SHA256SUMS, the manifest, then the others."""
    cursor: str | None = "0"
    while cursor:
        page = client.get(api_path("datasets", dataset_id, "files"), limit=PAGE, cursor=cursor)
        yield from (RemoteFile(dataset_id, cursor, **item) for item in page["items"])
        cursor = page["next_cursor"]


def download_file(client: Client, file: RemoteFile, out: Path, on_progress: OnProgress) -> None:
    """Download one file, unless it is there, and resume a partial one. Raises Failure where it arrives damaged."""
    target = out / file.path
    part = target.with_name(f"{target.name}.part")
    if not target.resolve().is_relative_to(out.resolve()):
        raise Failure(sentence("path_outside_dataset", path=file.path))
    try:
        if target.is_file() and sha256_of(target) == file.sha256:
            return on_progress(target.stat().st_size)
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a partial file may belong to another dataset: then once more from its start
            on_progress(part.stat().st_size if part.is_file() else 0)
            complete_part(client, file, part, on_progress)
            if sha256_of(part) == file.sha256:
                part.replace(target)
                return
            on_progress(-part.stat().st_size)
            part.unlink()
    except OSError as error:
        if error.errno in NO_ROOM:
            part.unlink(missing_ok=True)
        raise Failure(sentence("not_writable", path=target, reason=error.strerror)) from None
    raise Failure(sentence("file_damaged", path=file.path))


def complete_part(client: Client, file: RemoteFile, part: Path, on_progress: OnProgress) -> None:
    """Append the rest of a file, with retries while bytes arrive; an expired link is renewed once."""
    delays, is_renewed = list(RETRY_DELAYS_S), False
    with part.open("ab") as target:
        while True:
            before = target.tell()
            try:
                return client.append_from_link(file.url, target, on_progress)
            except LinkExpired:
                if is_renewed:
                    raise
                file, is_renewed = file.with_new_link(client), True
            except FarmUnavailable:
                if target.tell() > before:
                    delays = list(RETRY_DELAYS_S)
                if not delays:
                    raise
                time.sleep(delays.pop(0))


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
