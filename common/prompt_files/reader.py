"""Files of prompts in storage, whatever their format: their lines from anywhere on. What a line says is `lines`'."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.prompt_files.lines import Line, csv_records, lines, read_csv_header
from common.prompt_files.parquet import parquet_rows
from common.storage import Storage, upload_key
from common.uploads import Upload

UTF8 = "utf-8"


@dataclass(frozen=True)
class PromptFile:
    """The lines that are left, and how far the last one ends of them all: bytes, or rows of Parquet."""

    lines: Iterator[Line]
    length: int


@contextmanager
def open_prompts(storage: Storage, upload: Upload, offset: int = 0, number: int = 0) -> Iterator[PromptFile]:
    """A file from where a line of it ended: its `end`, and the number of its `last`.

    Raises NotFound when it is not there, Unavailable when the image store is away, and Invalid when it is not what its
    format says.
    """
    key = upload_key(upload.id, upload.format)
    if upload.format == "parquet":
        with parquet_rows(lambda start, size: storage.read(key, start, size), upload.bytes, offset) as rows:
            yield PromptFile(iter(rows), rows.total)
    elif upload.format == "csv":
        with storage.open(key) as head:
            table = read_csv_header(head, upload.encoding or UTF8)
        with storage.open(key, max(offset, table.end)) as blocks:
            found = csv_records(blocks, table, max(offset, table.end), max(number, table.number))
            yield PromptFile(found, upload.bytes)
    else:
        with storage.open(key, offset) as blocks:
            yield PromptFile(lines(blocks, upload.format, offset, number), upload.bytes)


def line_noun(format: str) -> str:
    """What one line of it is, in words that begin a sentence."""
    return "Row" if format == "parquet" else "Line"
