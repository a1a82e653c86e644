"""Files of prompts in storage, of any format: their lines, from any of them on. Does not know what lines mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.prompt_files.lines import Gap, Line, csv_records, lines, read_csv_header
from common.prompt_files.parquet import parquet_rows
from common.storage import Storage, upload_key
from common.uploads import Upload

UTF8 = "utf-8"


@dataclass(frozen=True)
class PromptFile:
    """The lines that are left, and the length of the whole file, in bytes or in rows of Parquet as their `end`.

    The length of a Parquet file is known from its first line on.
    """

    lines: Iterator[Line | Gap]
    length: Callable[[], int]


@contextmanager
def open_prompts(storage: Storage, upload: Upload, offset: int = 0, number: int = 0) -> Iterator[PromptFile]:
    """Open a file behind one of its lines: `offset` is the `end` of that line, `number` its `last`.

    Raises NotFound if there is no such file, Unavailable if the image store is, and Invalid if the file is not of its
    format.
    """
    key = upload_key(upload.id, upload.format)
    if upload.format == "parquet":
        with parquet_rows(lambda start, size: storage.read(key, start, size), upload.bytes, offset) as rows:
            yield PromptFile(iter(rows), lambda: rows.total)
    elif upload.format == "csv":
        with storage.open(key) as head:
            header = read_csv_header(head, upload.encoding or UTF8)
        with storage.open(key, max(offset, header.end)) as blocks:
            found = csv_records(blocks, header, max(offset, header.end), max(number, header.number))
            yield PromptFile(found, lambda: upload.bytes)
    else:
        with storage.open(key, offset) as blocks:
            yield PromptFile(lines(blocks, upload.format, offset, number), lambda: upload.bytes)
