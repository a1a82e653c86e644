"""Writes one shard of a dataset: its images, then its metadata, then its manifest. Equal images give equal bytes.

Images are downloaded a few ahead and written as they arrive, so memory does not grow with the shard. A row has what the
tables know of an image, and what its file says about the worker that rendered it. Knows no table.
"""

import json
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from io import BytesIO
from itertools import chain
from typing import Any, TypeVar

from PIL import Image

from common.catalog.catalog import Catalog
from common.datasets import layout
from common.datasets.contents import FinishedJob
from common.datasets.layout import Columns, Layout, Row, item_id
from common.enums import ImageState
from common.errors import NotFound
from common.log import log_event
from common.recipes.recipe import Recipe
from common.storage import Storage, sha256
from worker.datasets import formats
from worker.datasets.files import DatasetFiles

T = TypeVar("T")
U = TypeVar("U")

ShardManifest = Mapping[str, Any]  # the content of `_state/SHARD.json`
Report = Callable[[int], None]  # called again and again with the number of images that are done

DOWNLOADS = 8  # at the same time
PREFETCHED = 4 * DOWNLOADS  # images in memory
VERSIONS = ("diffusers", "huafang", "numpy", "torch")  # the fields of a worker's class that are versions
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag


@dataclass(frozen=True)
class Item:
    """An image that has ended: its row, and the key of its file if it has one."""

    row: Row
    compatibility: str
    key: str | None
    bytes: int


@dataclass(frozen=True)
class Shard:
    """Images that are written together."""

    name: str
    layout: Layout
    plan: str  # its digest
    items: Sequence[Item]
    columns: Columns


class ShardWriter:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(DOWNLOADS, "downloads")

    def write(self, shard: Shard, files: DatasetFiles, report: Report) -> int:
        """Write a shard. Returns the number of images with a file. What `report` raises ends it."""
        rows = rows_with_unique_keys(shard.items)
        written = []
        images = self._images(shard, files, report)
        if first := next(images, None):
            path = layout.data_path(shard.layout, shard.name)
            written.append(files.put_blocks(path, ENCODERS[shard.layout](chain([first], images), shard.columns)))
        written.append(files.put(layout.metadata_path(shard.name), formats.metadata(rows, shard.columns)))
        stored = [item for item in shard.items if item.row["status"] == ImageState.STORED]
        shard_manifest: ShardManifest = {
            "shard": shard.name,
            "plan": shard.plan,
            "rows": len(rows),
            "pictures": len(stored),
            "bytes": sum(item.bytes for item in stored),
            "statuses": Counter(row["status"] for row in rows),
            "settings": Counter(item.compatibility for item in shard.items),
            "revisions": _distinct(rows, lambda row: f"{row['model']} {row['model_revision'] or ''}".rstrip()),
            "worker_classes": _distinct(rows, lambda row: row["worker_class"]),
            "versions": _distinct(rows, lambda row: row["versions"]),
            "formats": _distinct(rows, lambda row: row["format"]),
            "recipes": layout.text_sha256("\n".join(row["key"] for row in rows)),
            "files": {file.path: {"sha256": file.sha256, "bytes": file.bytes} for file in written},
        }
        files.put_json(layout.shard_manifest_path(shard.name), shard_manifest)
        return len(stored)

    def _images(self, shard: Shard, files: DatasetFiles, report: Report) -> Iterator[tuple[Row, bytes]]:
        """The images of a shard in order, each with its row, which is complete from then on."""
        fetched = prefetch(self._pool, lambda item: self._fetch(shard, item, files), shard.items)
        for done, (item, data) in enumerate(zip(shard.items, fetched, strict=True)):
            report(done)
            if data is not None:
                add_worker_facts(item.row, data)
                yield item.row, data
            elif item.key:
                log_event("picture_lost", image=item.row["image_id"], key=item.key)
                mark_missing(item.row)

    def _fetch(self, shard: Shard, item: Item, files: DatasetFiles) -> bytes | None:
        """The file of an image, if it has one that is whole. In an image folder it is stored here, too."""
        try:
            data = self._storage.get(item.key) if item.key else None
        except NotFound:
            return None
        if data is None or sha256(data) != item.row["sha256"]:
            return None
        if shard.layout == "imagefolder":
            files.put(layout.image_path(shard.name, item.row), data)
        return data


ENCODERS: dict[Layout, Callable[[formats.ImageRows, Columns], Iterator[bytes]]] = {
    "webdataset": formats.webdataset,
    "parquet": formats.parquet,
    "imagefolder": formats.imagefolder,
}


# Rows


def items_of(job: FinishedJob, split: str, catalog: Catalog) -> Iterator[Item]:
    """The images of a job, in order. The columns that only their files can fill are None."""
    recipe = Recipe.model_validate(job.recipe)
    model = catalog.models.get(recipe.model)
    for image in job.images:
        row = {
            "key": item_id(recipe, image["index"]),
            "image_id": image["id"],
            "job_id": image["job_id"],
            "index": image["index"],
            "prompt": recipe.prompt,
            "negative_prompt": recipe.negative_prompt,
            "model": recipe.model,
            "model_revision": None,
            "scheduler": recipe.scheduler,
            "steps": recipe.steps,
            "guidance": recipe.guidance,
            "seed": recipe.seeds[image["index"]],
            "width": recipe.width,
            "height": recipe.height,
            "format": recipe.format,
            "sha256": image["sha256"],
            "status": image["state"],
            "error_code": image["error_code"],
            "worker_class": None,
            "versions": None,
            "created_at": job.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "render_ms": image["render_ms"],
            "licence": model.licence.name if model else "",
            "split": split,
            "row": job.origin.get("row"),
            "meta": job.origin.get("meta", {}),
            "template_vars": job.origin.get("template_vars"),
        }
        yield Item(row, recipe.compatibility, image["key"], image["bytes"] or 0)


def rows_with_unique_keys(items: Sequence[Item]) -> list[Row]:
    """The rows of a shard. The same recipe twice has the same key twice, which a tar cannot hold: number the others."""
    seen = Counter[str]()
    for item in items:
        key = item.row["key"]
        seen[key] += 1
        if seen[key] > 1:
            item.row["key"] = f"{key}-{seen[key]}"
    return [item.row for item in items]


def add_worker_facts(row: Row, data: bytes) -> None:
    """Fill in what the image's file says about the worker that rendered it."""
    texts = embedded_texts(data)
    known = _object(texts.get("worker", ""))
    row["model_revision"] = texts.get("revision", "")
    row["worker_class"] = _text({name: known[name] for name in known if name not in VERSIONS})
    row["versions"] = _text({name: known[name] for name in known if name in VERSIONS})


def mark_missing(row: Row) -> None:
    """Make it the row of an image whose file is missing or damaged."""
    row.update(status=ImageState.FAILED.value, error_code="picture_lost", sha256=None)


def embedded_texts(data: bytes) -> dict[str, str]:
    """The texts by keyword that `worker.render.encode` wrote into an image. Empty for other files; decodes no pixel."""
    try:
        with Image.open(BytesIO(data)) as image:
            if image.format == "PNG":
                return {str(key): str(text) for key, text in image.info.items() if isinstance(text, str)}
            if image.format == "JPEG":  # a long text is in several comments
                text = b"".join(comment for name, comment in image.applist if name == "COM")  # type: ignore[attr-defined]
            else:
                text = image.getexif().get(IMAGE_DESCRIPTION, "")
        return {str(key): str(value) for key, value in _object(text).items()}
    except (OSError, SyntaxError, ValueError, struct.error):  # what Pillow raises for a damaged file
        return {}


def _object(text: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


def _distinct(rows: Sequence[Row], value: Callable[[Row], str | None]) -> list[str]:
    return sorted({found for row in rows if row["status"] == ImageState.STORED and (found := value(row))})


def prefetch(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`map(function, items)` on a pool, at most PREFETCHED results ahead of the caller."""
    pending = deque[Future[U]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > PREFETCHED:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
