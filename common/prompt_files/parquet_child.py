"""Reads a Parquet file of prompts for `common.prompt_files.parquet`, in a process of its own.

What such a file unpacks to nobody knows before: a page of 70 KB may become two gigabytes. Here memory has a limit, and
a broken file that brings its reader down takes nobody along. Speaks with its parent over stdin and stdout:

    size of the file →               ← P 1000            prompts in the file
                                     ← R offset size     it wants these bytes
               bytes →
                                     ← {"prompt": …}     the next row, from row N on
                                     ← E why             it cannot go on; the sentence is for people
                                     ← .                 that was the last one
"""

import io
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from common.errors import Invalid
from common.prompt_files.columns import FLOATS, INTEGERS, columns_of

BATCH_ROWS = 256
BUFFER_BYTES = 1_000_000
MAX_ROWS = 100_000_000
to_json = json.JSONEncoder(ensure_ascii=False).encode
SUPPORTED = "text, numbers, or lists of them"


class ParentFile(io.RawIOBase):
    """The file, as the parent has it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        if wanted:
            send(f"R {self._place} {wanted}")
            sys.stdout.flush()
            data = sys.stdin.buffer.read(wanted)
            if len(data) < wanted:
                sys.exit(1)  # the parent has gone
            buffer[:wanted] = data
            self._place += wanted
        return wanted


def main(start: int, memory: int) -> None:
    size = int(sys.stdin.buffer.readline())
    try:
        import pyarrow
    except ImportError:
        exit_with_error("pyarrow is not installed on this host: pip install 'huafang[datasets]'.")
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # that one answers when there is no more
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    limit_memory(memory)
    try:
        for row in rows(ParentFile(size), start):
            send(to_json(row))
    except MemoryError:  # Arrow's own too
        exit_with_error(f"its pages take more than {memory:,} bytes to unpack; write it with smaller ones.")
    except Invalid as error:
        exit_with_error(error.message)
    send(".")
    sys.stdout.flush()


def limit_memory(memory: int) -> None:
    """Let this process take so much more than it has by now."""
    if sys.platform == "linux":  # elsewhere nobody keeps to it
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def rows(file: ParentFile, start: int) -> Iterator[dict[str, Any]]:
    """What the rows from `start` on give. Raises Invalid when this is no table of prompts."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        if table.metadata.num_rows > MAX_ROWS:
            raise Invalid(f"it has {table.metadata.num_rows:,} rows; at most {MAX_ROWS:,} can be read.")
        columns = columns_of([field.name for field in table.schema_arrow])
        for field in table.schema_arrow:
            if not is_supported(field.type, pyarrow.types):
                raise Invalid(f"column {field.name[:40]!r} is of type {field.type}; it must be of {SUPPORTED}.")
        send(f"P {table.metadata.num_rows}")
        groups, left = list(range(table.num_row_groups)), start
        while groups and left >= table.metadata.row_group(groups[0]).num_rows:
            left -= table.metadata.row_group(groups.pop(0)).num_rows
        for batch in table.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
            skipped = min(left, batch.num_rows)
            left -= skipped
            for row in batch.slice(skipped).to_pylist():
                yield {column: normalise(column, cell) for column, cell in zip(columns, row.values(), strict=True)}
    except pyarrow.ArrowMemoryError:
        raise MemoryError from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Invalid(f"it cannot be read as Parquet: {str(error).splitlines()[0][:200]}") from None


def is_supported(kind: Any, types: Any) -> bool:
    """Text, numbers, lists of numbers, lists of {name, weight}; anything if all of it is null."""
    if types.is_dictionary(kind):
        return is_supported(kind.value_type, types)
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_struct(kind.value_type)) or is_supported(kind.value_type, types)
    text = types.is_string(kind) or types.is_large_string(kind)
    return bool(text or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind))


def normalise(column: str, cell: Any) -> Any:
    """A whole number beside empty cells is a float in many a table, and an empty one is NaN."""
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
    send(f"E {why}")
    sys.stdout.flush()
    sys.exit(1)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass", line_buffering=False)  # type: ignore[union-attr]
    main(*map(int, sys.argv[1:]))
