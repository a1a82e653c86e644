"""The child process of `common.prompt_files.parquet`: reads a Parquet file of prompts under a limit of memory.

How much such a file unpacks to is unknown before: a page of 70 KB may become two gigabytes. Too large or broken a file
ends this process, and not its parent. Messages on stdin and stdout, a line each but for the bytes:

    size of the file →               ← P 1000            the number of prompts in the file
                                     ← R offset size     a request for these bytes
               bytes →
                                     ← {"prompt": …}     the next row
                                     ← L                 the next row, which is too long to be sent
                                     ← S 1000            so many rows with nothing in them are skipped
                                     ← E {"text": …}     an error, which ends this process: a Sentence
                                     ← .                 the end of the rows
"""

import io
import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.columns import FLOATS, INTEGERS, columns_of
from common.prompt_files.lines import MAX_LINE_BYTES
from common.sentences import Sentence

BATCH_ROWS = (65_536, 256)  # unpacked at once: many, or few where many take BATCH_BYTES
BATCH_BYTES = 30_000_000
SENT_ROWS = 256
BUFFER_BYTES = 1_000_000
MAX_ROWS = 100_000_000
to_json = json.JSONEncoder(ensure_ascii=False).encode


class ParentFile(io.RawIOBase):
    """The file, of which the parent sends the bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        return self._offset

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._offset))
        if wanted:
            send(f"R {self._offset} {wanted}")
            sys.stdout.flush()
            data = sys.stdin.buffer.read(wanted)
            if len(data) < wanted:
                sys.exit(1)  # the parent has ended
            buffer[:wanted] = data
            self._offset += wanted
        return wanted


def main(start: int, memory: int) -> None:
    size = int(sys.stdin.buffer.readline())
    try:
        import pyarrow
    except ImportError:
        exit_with_error(sentence("pyarrow_missing"))
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # this one raises at the limit
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    limit_memory(memory)
    try:
        send_rows(ParentFile(size), start)
    except MemoryError:  # Arrow's own too
        exit_with_error(sentence("parquet_pages_too_large", most=memory))
    except Invalid as error:
        exit_with_error(error.message)
    send(".")
    sys.stdout.flush()


def limit_memory(memory: int) -> None:
    """Let this process use so many bytes more than it does now."""
    if sys.platform == "linux":  # other systems do not enforce it
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def send_rows(file: ParentFile, start: int) -> None:
    """Send the rows from `start` on. Raises Invalid if the file is no table of prompts."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        if table.metadata.num_rows > MAX_ROWS:
            raise Invalid(sentence("parquet_too_many_rows", rows=table.metadata.num_rows, most=MAX_ROWS))
        columns = columns_of([field.name for field in table.schema_arrow])
        for field in table.schema_arrow:
            if not is_supported(field.type, pyarrow.types):
                raise Invalid(sentence("parquet_column_type", column=field.name[:40], type=str(field.type)))
        send(f"P {table.metadata.num_rows}")
        for batch in batches(table, start):
            send_batch(batch, columns)
    except pyarrow.ArrowMemoryError:
        raise MemoryError from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Invalid(sentence("parquet_unreadable", reason=str(error).splitlines()[0][:200])) from None


def batches(table: Any, start: int) -> Iterator[Any]:
    """The rows from `start` on, unpacked batch after batch."""
    import pyarrow

    for most in BATCH_ROWS:
        groups, left = list(range(table.num_row_groups)), start
        while groups and left >= table.metadata.row_group(groups[0]).num_rows:
            left -= table.metadata.row_group(groups.pop(0)).num_rows
        try:
            for batch in table.iter_batches(most, row_groups=groups, use_threads=False):
                if batch.nbytes > BATCH_BYTES and most > BATCH_ROWS[-1]:
                    break
                skipped = min(left, batch.num_rows)
                left -= skipped
                start += batch.num_rows - skipped
                if batch.num_rows > skipped:
                    yield batch.slice(skipped)
            else:
                return
        except pyarrow.ArrowMemoryError:
            if most == BATCH_ROWS[-1]:
                raise


def send_batch(batch: Any, columns: Sequence[str]) -> None:
    """Send the rows that have something in them, and the number of the others before each of them and at the end."""
    from pyarrow import compute

    empty = None
    for column in batch.columns:
        nulls = column.is_null(nan_is_null=True)
        empty = nulls if empty is None else compute.and_(empty, nulls)
    places = compute.indices_nonzero(compute.invert(empty))
    sent = 0
    for at in range(0, len(places), SENT_ROWS):
        here = places.slice(at, SENT_ROWS)
        for place, row in zip(here.to_pylist(), batch.take(here).to_pylist(), strict=True):
            fields = {column: normalise(column, cell) for column, cell in zip(columns, row.values(), strict=True)}
            if any(value is not None for value in fields.values()):
                if place > sent:
                    send(f"S {place - sent}")
                text = to_json(fields)
                send(text if len(text) <= MAX_LINE_BYTES else "L")
                sent = place + 1
    if batch.num_rows > sent:
        send(f"S {batch.num_rows - sent}")
    sys.stdout.flush()


def is_supported(kind: Any, types: Any) -> bool:
    """Whether a column is of text, of numbers, of lists of numbers or of {name, weight}, or has nothing but nulls."""
    if types.is_dictionary(kind):
        return is_supported(kind.value_type, types)
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_struct(kind.value_type)) or is_supported(kind.value_type, types)
    text = types.is_string(kind) or types.is_large_string(kind)
    return bool(text or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind))


def normalise(column: str, cell: Any) -> Any:
    """The value of a cell. In many tables, integers beside empty cells are floats, and the empty cells NaN."""
    if isinstance(cell, float):
        if cell != cell:
            return None
        if column in INTEGERS and cell.is_integer() and abs(cell) < 2**53:
            return int(cell)
    if isinstance(cell, int) and column in FLOATS:
        return float(cell)
    return cell


def send(line: str) -> None:
    sys.stdout.write(line + "\n")


def exit_with_error(why: str) -> NoReturn:
    assert isinstance(why, Sentence)
    send("E " + to_json({"text": why, "code": why.code, "params": why.params}))
    sys.stdout.flush()
    sys.exit(1)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass", line_buffering=False)  # type: ignore[union-attr]
    main(*map(int, sys.argv[1:]))
