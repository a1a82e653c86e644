"""The files of a shard, as bytes: tars, Parquet and JSON lines. Equal rows and images give equal bytes.

Takes images one by one and yields blocks, so memory does not grow with the shard. Knows neither storage nor tables.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.datasets.layout import Columns, Row, image_name

ImageRows = Iterable[tuple[Row, bytes]]  # rows of stored images, each with its file

GROUP_IMAGES, GROUP_BYTES = 100, 20_000_000  # of a row group, which a reader holds in memory


def metadata_schema(columns: Columns) -> pa.Schema:
    return pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.types.items()])


def images_schema(columns: Columns) -> pa.Schema:
    """With the features that the `datasets` library reads, which say that one column is an image."""
    values = {name: {"dtype": kind.rstrip("_"), "_type": "Value"} for name, kind in columns.types.items()}
    features = {"image": {"_type": "Image"}, **values}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *metadata_schema(columns)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def webdataset(images: ImageRows, columns: Columns) -> Iterator[bytes]:
    """A tar for WebDataset: of each image its file, its prompt and its row, under one key."""
    size = 0
    for row, data in images:
        members = (
            (image_name(row), data),
            (f"{row['key']}.txt", row["prompt"].encode()),
            (f"{row['key']}.json", line(columns.sample(row))),
        )
        sample = b"".join(_member(name, content) for name, content in members)
        size += len(sample)
        yield sample
    end = 2 * tarfile.BLOCKSIZE
    yield b"\0" * (end + -(size + end) % tarfile.RECORDSIZE)


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # owner 0, time 0: equal bytes
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def parquet(images: ImageRows, columns: Columns) -> Iterator[bytes]:
    """A Parquet file with the images in the column `image`."""
    file, schema = _Buffer(), images_schema(columns)
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(images):
            rows = [{"image": {"bytes": data, "path": image_name(row)}, **columns.cells(row)} for row, data in group]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            yield file.take()
    yield file.take()


def _groups(images: ImageRows) -> Iterator[list[tuple[Row, bytes]]]:
    group, size = list[tuple[Row, bytes]](), 0
    for row, data in images:
        if group and (len(group) == GROUP_IMAGES or size + len(data) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((row, data))
        size += len(data)
    if group:
        yield group


def metadata(rows: Sequence[Row], columns: Columns) -> bytes:
    """A Parquet file of the rows, without images."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(map(columns.cells, rows)), metadata_schema(columns)), file)
    return file.getvalue()


def rows_of(data: bytes, *columns: str) -> list[dict[str, Any]]:
    """These columns of a file that `metadata` made."""
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), columns=list(columns)).to_pylist()
    return found


def imagefolder(images: ImageRows, columns: Columns) -> Iterator[bytes]:
    """The `metadata.jsonl` of an image folder: the rows of the images beside it, by file name."""
    for row, _ in images:
        yield line({"file_name": image_name(row), **columns.cells(row)})


def line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Buffer(io.RawIOBase):
    """A file to write to; `take` removes and returns what was written since the last call."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._blocks.append(bytes(data))
        self._size += len(self._blocks[-1])
        return len(self._blocks[-1])

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        blocks, self._blocks = self._blocks, []
        return b"".join(blocks)
