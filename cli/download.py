"""Getting a dataset into a folder: file after file, each checked against its sha256, and on from where it broke off.

A file has its name once it is whole and right, and `.part` behind it until then. The manifest is the first, SHA256SUMS
the last of them. Knows no command.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cli.client import PAUSES, Away, Client, Gone, Json, path
from cli.shell import Failure
from common.datasets.layout import FOLDERS, MANIFEST, SUMS, TOP_LEVEL_FILES

PAGE = 200
AT_ONCE = 4  # files
BLOCK_BYTES = 1_000_000

Tell = Callable[[int], None]


@dataclass(frozen=True)
class File:
    dataset_id: str
    page: str  # the cursor of the page that lists it
    path: str
    sha256: str
    url: str

    def renewed(self, client: Client) -> "File":
        """The same, with a link that is good."""
        page = client.get(path("datasets", self.dataset_id, "files"), limit=PAGE, cursor=self.page)
        return replace(self, url=next(one["url"] for one in page["items"] if one["path"] == self.path))


def check_folder(out: Path, plan: str, *, overwrite: bool) -> None:
    """Make the folder ready for the dataset of this plan. Raises Failure when it holds something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = plan_of(out)
        if there == plan or not any(name for name in out.iterdir() if name.suffix != ".part"):
            return
        if there is None:
            raise Failure(f"{out} is not empty and holds no dataset; choose another folder.", 5)
        if not overwrite:
            raise Failure(f"{out} holds another dataset, of another batch or plan; --overwrite replaces it.", 5)
        clear(out)
    except OSError as error:
        raise Failure(f"Cannot write to {out}: {error.strerror}.") from None


def plan_of(folder: Path) -> str | None:
    """The digest of the plan of the dataset in this folder, whole or not; None where there is none."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear(folder: Path) -> None:
    """Delete a dataset, and nothing else that is in its folder. The manifest, which says that it is one, goes last."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in sorted(TOP_LEVEL_FILES, key=lambda name: name == MANIFEST):
        (folder / name).unlink(missing_ok=True)


def download(client: Client, dataset: Json, out: Path, tell: Tell) -> None:
    """Bring a dataset that is ready into a folder; `tell` hears of bytes that have come, or were there."""
    listed = files(client, dataset["id"])
    sums, manifest = next(listed), next(listed)
    (out / SUMS).unlink(missing_ok=True)  # it is not whole until this is back
    fetch(client, manifest, out, tell)
    with ThreadPoolExecutor(AT_ONCE, "download") as pool:
        while some := list(islice(listed, PAGE)):
            coming = [pool.submit(fetch, client, file, out, tell) for file in some]
            try:
                for one in coming:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    fetch(client, sums, out, tell)


def files(client: Client, dataset_id: str) -> Iterator[File]:
    """All files of a dataset: SHA256SUMS, the manifest, then the others."""
    cursor: str | None = "0"
    while cursor:
        page = client.get(path("datasets", dataset_id, "files"), limit=PAGE, cursor=cursor)
        yield from (File(dataset_id, cursor, **item) for item in page["items"])
        cursor = page["next_cursor"]


def fetch(client: Client, file: File, out: Path, tell: Tell) -> None:
    """Bring one file, unless it is there. What has come of it before is not fetched again."""
    target = out / file.path
    if not target.resolve().is_relative_to(out.resolve()):
        raise Failure(f"The farm names a file outside of the dataset: {file.path}.")
    try:
        if target.is_file() and digest_of(target) == file.sha256:
            return tell(target.stat().st_size)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        for _ in range(2):  # what was there before may be of another file
            tell(part.stat().st_size if part.is_file() else 0)
            save(client, file, part, tell)
            if digest_of(part) == file.sha256:
                part.replace(target)
                return
            tell(-part.stat().st_size)
            part.unlink()
    except OSError as error:
        raise Failure(f"Cannot write {target}: {error.strerror}.") from None
    raise Failure(f"{file.path} arrived damaged: its sha256 is not the one that the farm recorded.")


def save(client: Client, file: File, part: Path, tell: Tell) -> None:
    """Append what is missing, however often it breaks off while something comes; a link that is too old is renewed."""
    pauses, is_renewed = list(PAUSES), False
    with part.open("ab") as target:
        while True:
            before = target.tell()
            try:
                return client.save(file.url, target, tell)
            except Gone:
                if is_renewed:
                    raise
                file, is_renewed = file.renewed(client), True
            except Away:
                if target.tell() > before:
                    pauses = list(PAUSES)
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
