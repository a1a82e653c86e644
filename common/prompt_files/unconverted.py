"""Parquet files that code before CODE 9 stored as they were uploaded: converted again each time that they are opened.

The `end` of their lines is the number of rows, as that code counts: it may go on with the same batch.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from common.prompt_files.columns import Columns
from common.prompt_files.conversion import convert
from common.prompt_files.lines import Gap, Line
from common.prompt_files.sheets import read_table_header, table_rows
from common.storage import Storage

WAIT_S = 0.05
BLOCK_BYTES = 1_000_000


class UnconvertedRows:
    """The rows behind the first `start` ones. `total`, the number of all rows, is known from the first one on."""

    def __init__(
        self, storage: Storage, key: str, source: BinaryIO, target: BinaryIO, columns: Columns, start: int
    ) -> None:
        self._storage, self._key, self._source, self._target, self._start = storage, key, source, target, start
        self._columns = columns
        self.total = 0

    def read(self) -> Iterator[Line | Gap]:
        """While the file is converted, Gaps. Raises Invalid if it cannot be."""
        yield from self._convert()
        self._target.seek(0)
        self.total = max(1, sum(block.count(b"\n") for block in self._blocks()) - 1)
        self._target.seek(0)
        header = read_table_header(self._blocks(), self._columns)
        self._target.seek(header.end)
        for found in table_rows(self._blocks(), header, header.end, 0):
            if found.last > self._start or isinstance(found, Gap):
                last = max(found.last, self._start)
                yield found._replace(end=found.last) if isinstance(found, Line) else Gap(last, last)

    def _convert(self) -> Iterator[Gap]:
        with self._storage.open(self._key) as blocks:
            for block in blocks:
                self._source.write(block)
                yield Gap(self._start, self._start)
        with convert.start(self._source, self._target, "parquet") as child:
            until = time.monotonic() + convert.MAX_WAIT_S
            while not convert.has_ended(child, until, WAIT_S):
                yield Gap(self._start, self._start)

    def _blocks(self) -> Iterator[bytes]:
        return iter(lambda: self._target.read(BLOCK_BYTES), b"")


@contextmanager
def parquet_rows(storage: Storage, key: str, columns: Columns, start: int) -> Iterator[UnconvertedRows]:
    """The rows of a stored file. The child ends with the iterator of `read`."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        yield UnconvertedRows(storage, key, source, target, columns, start)
