"""Writes one shard: its pictures, then its metadata, then its mark. Equal images give equal bytes.

Pictures are fetched a few ahead and leave as they come, so memory does not grow with the shard. Knows no table.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from common.datasets import layout
from common.datasets.layout import Layout, Row
from common.enums import ImageState
from common.errors import NotFound
from common.log import log_event
from common.storage import Storage, sha256
from worker.datasets import formats
from worker.datasets.files import DatasetFiles
from worker.datasets.rows import Item, complete, lose

T = TypeVar("T")
U = TypeVar("U")

GETS = 8  # pictures on their way at the same time
AHEAD = 4 * GETS  # pictures in memory


@dataclass(frozen=True)
class Shard:
    """Images that are written together."""

    name: str
    layout: Layout
    plan: str  # the digest of it
    items: Sequence[Item]


class ShardWriter:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(GETS, "pictures")

    def write(self, shard: Shard, shelf: DatasetFiles, note: Callable[[int], None]) -> int:
        """Write a shard; how many pictures it has. `note` is told, again and again, how many images are done."""
        rows = rows_with_keys_of_their_own(shard.items)
        files = []
        pictures = self._pictures(shard, shelf, note)
        if first := next(pictures, None):
            path = layout.data_path(shard.layout, shard.name)
            files.append(shelf.put_blocks(path, BLOCKS[shard.layout](chain([first], pictures))))
        files.append(shelf.put(layout.metadata_path(shard.name), formats.metadata(rows)))
        stored = [item for item in shard.items if item.row["status"] == ImageState.STORED]
        mark: dict[str, Any] = {
            "shard": shard.name,
            "plan": shard.plan,
            "rows": len(rows),
            "pictures": len(stored),
            "bytes": sum(item.bytes for item in stored),
            "statuses": Counter(row["status"] for row in rows),
            "settings": Counter(item.compatibility for item in shard.items),
            "revisions": _seen(rows, lambda row: f"{row['model']} {row['model_revision'] or ''}".rstrip()),
            "worker_classes": _seen(rows, lambda row: row["worker_class"]),
            "versions": _seen(rows, lambda row: row["versions"]),
            "recipes": layout.sha256("\n".join(row["key"] for row in rows)),
            "files": {file.path: {"sha256": file.sha256, "bytes": file.bytes} for file in files},
        }
        shelf.put_json(layout.mark_path(shard.name), mark)
        return len(stored)

    def _pictures(self, shard: Shard, shelf: DatasetFiles, note: Callable[[int], None]) -> Iterator[tuple[Row, bytes]]:
        """The pictures of a shard in their order; their rows are complete from then on."""
        fetched = ahead(self._pool, lambda item: self._fetch(shard, item, shelf), shard.items)
        for done, (item, picture) in enumerate(zip(shard.items, fetched, strict=True)):
            note(done)
            if picture is not None:
                complete(item.row, picture)
                yield item.row, picture
            elif item.key:
                log_event("picture_lost", image=item.row["image_id"], key=item.key)
                lose(item.row)

    def _fetch(self, shard: Shard, item: Item, shelf: DatasetFiles) -> bytes | None:
        """The picture of an image, if it has one. Those of an image folder are put there by the way."""
        try:
            picture = self._storage.get(item.key) if item.key else None
        except NotFound:
            return None
        if picture is None or sha256(picture) != item.row["sha256"]:
            return None
        if shard.layout == "imagefolder":
            shelf.put(layout.picture_path(shard.name, item.row), picture)
        return picture


BLOCKS: dict[Layout, Callable[[formats.Pictures], Iterator[bytes]]] = {
    "webdataset": formats.webdataset,
    "parquet": formats.parquet,
    "imagefolder": formats.imagefolder,
}


def rows_with_keys_of_their_own(items: Sequence[Item]) -> list[Row]:
    """The rows of a shard. A picture that was asked for twice has the same id twice; in a tar that would be one."""
    seen = Counter[str]()
    for item in items:
        key = item.row["key"]
        seen[key] += 1
        if seen[key] > 1:
            item.row["key"] = f"{key}-{seen[key]}"
    return [item.row for item in items]


def ahead(pool: ThreadPoolExecutor, act: Callable[[T], U], things: Iterable[T]) -> Iterator[U]:
    """What `map` gives, by a pool that is a few ahead of whoever takes it."""
    coming = deque[Future[U]]()
    try:
        for thing in things:
            coming.append(pool.submit(act, thing))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


def _seen(rows: Sequence[Row], what: Callable[[Row], str | None]) -> list[str]:
    return sorted({found for row in rows if row["status"] == ImageState.STORED and (found := what(row))})
