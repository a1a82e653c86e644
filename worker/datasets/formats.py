"""The files of a shard, as bytes: tars, Parquet and JSON lines. Equal rows and pictures give equal bytes.

Pictures come one by one and leave in blocks, so memory does not grow with the shard. Knows neither storage nor tables.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.datasets.layout import COLUMNS, Row, picture_name

Pictures = Iterable[tuple[Row, bytes]]

GROUP_PICTURES, GROUP_BYTES = 100, 20_000_000  # of a row group: what its readers hold in memory
METADATA = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])
PICTURES = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *METADATA],
    # Where the `datasets` library looks for what is a picture.
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "image": {"_type": "Image"},
                        **{name: {"dtype": kind, "_type": "Value"} for name, kind in COLUMNS.items()},
                    }
                }
            }
        )
    },
)


def webdataset(pictures: Pictures) -> Iterator[bytes]:
    """A WebDataset: of each picture its file, its prompt and its row, under one key."""
    size = 0
    for row, data in pictures:
        members = (
            (picture_name(row), data),
            (f"{row['key']}.txt", row["prompt"].encode()),
            (f"{row['key']}.json", line(row)),
        )
        sample = b"".join(_member(name, content) for name, content in members)
        size += len(sample)
        yield sample
    end = 2 * tarfile.BLOCKSIZE
    yield b"\0" * (end + -(size + end) % tarfile.RECORDSIZE)


def _member(name: str, data: bytes) -> bytes:
    about = tarfile.TarInfo(name)  # by nobody, and of 1970
    about.size = len(data)
    return about.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def parquet(pictures: Pictures) -> Iterator[bytes]:
    """Parquet, with the pictures in the column `image`."""
    file = _Drain()
    with pq.ParquetWriter(file, PICTURES) as writer:
        for group in _groups(pictures):
            rows = [{"image": {"bytes": data, "path": picture_name(row)}, **row} for row, data in group]
            writer.write_table(pa.Table.from_pylist(rows, PICTURES))
            yield file.drained()
    yield file.drained()


def _groups(pictures: Pictures) -> Iterator[list[tuple[Row, bytes]]]:
    group, size = list[tuple[Row, bytes]](), 0
    for row, data in pictures:
        if group and (len(group) == GROUP_PICTURES or size + len(data) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((row, data))
        size += len(data)
    if group:
        yield group


def metadata(rows: Sequence[Row]) -> bytes:
    """Parquet, without pictures."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, METADATA), file)
    return file.getvalue()


def rows_of(data: bytes, *columns: str) -> list[dict[str, Any]]:
    """These columns of what `metadata` has made."""
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), columns=list(columns)).to_pylist()
    return found


def imagefolder(pictures: Pictures) -> Iterator[bytes]:
    """What says of the pictures beside it which row is theirs."""
    for row, _ in pictures:
        yield line({"file_name": picture_name(row), **row})


def line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Drain(io.RawIOBase):
    """A file that is written once; what was written is taken out in between."""

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

    def drained(self) -> bytes:
        blocks, self._blocks = self._blocks, []
        return b"".join(blocks)
