"""A Parquet file as a table of lines, see `common.prompt_files.sheets`. Runs in the child process only.

A value that JSON has no form for becomes the nearest one: a decimal a number, a date its text, bytes their text or, if
they are none, base64.
"""

import base64
import datetime
import decimal
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from common.errors import Invalid
from common.prompt_files import sentence

BATCH_ROWS = (65_536, 256)  # unpacked at once: many, or few where many take BATCH_BYTES
BATCH_BYTES = 30_000_000
BUFFER_BYTES = 1_000_000
MAX_ROWS = 100_000_000
MAX_BYTES = 8_000  # of bytes that are no text; longer ones, such as pictures, are described


def convert(source: BinaryIO, target: BinaryIO, kind: str, codec: str) -> None:
    """Raises Invalid if the file cannot be read or has nothing in it, and MemoryError."""
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # this one raises at the limit
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    try:
        table = parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
        if table.metadata.num_rows > MAX_ROWS:
            raise Invalid(sentence("parquet_too_many_rows", rows=table.metadata.num_rows, most=MAX_ROWS))
        target.write(_header(table.schema_arrow).encode() + b"\n")
        is_empty = True
        for batch in _batches(table):
            lines = _lines(batch)
            is_empty = is_empty and lines.isspace()
            target.write(lines)
        if is_empty:
            raise Invalid(sentence("file_without_rows"))
    except pyarrow.ArrowMemoryError:
        raise MemoryError from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise Invalid(sentence("parquet_unreadable", reason=str(error).splitlines()[0][:200])) from None


def _header(schema: Any) -> str:
    """The names of the columns and, behind them, of those that pandas calls an index."""
    index = [name for name in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(name, str)]
    return f"{to_json(schema.names)}{to_json(index) if index else ''}"


def _batches(table: Any) -> Iterator[Any]:
    """The rows, unpacked batch after batch; in small batches from the first large one on."""
    done = 0
    for most in BATCH_ROWS:
        left = done
        try:
            for batch in table.iter_batches(most, use_threads=False):
                if batch.nbytes > BATCH_BYTES and most > BATCH_ROWS[-1]:
                    break
                skipped = min(left, batch.num_rows)
                left -= skipped
                done += batch.num_rows - skipped
                if batch.num_rows > skipped:
                    yield batch.slice(skipped)
            else:
                return
        except pyarrow.ArrowMemoryError:
            if most == BATCH_ROWS[-1]:
                raise


def _lines(batch: Any) -> bytes:
    if all(column.null_count == batch.num_rows for column in batch.columns):
        return b"\n" * int(batch.num_rows)
    columns = [_cells(column) for column in batch.columns]
    rows = (to_json(row) if any(cell is not None for cell in row) else "" for row in zip(*columns, strict=True))
    return ("\n".join(rows) + "\n").encode()


def _cells(column: Any) -> list[Any]:
    cells: list[Any] = column.to_pylist()
    if pyarrow.types.is_floating(column.type):  # in many tables, the empty cells of a column of numbers are NaN
        return [cell if cell == cell else None for cell in cells]
    return cells


def _plain(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        if len(value) > MAX_BYTES:
            return {"bytes": len(value)}
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain).encode
