"""Files of prompts in storage, of any format: their lines, from any of them on. Does not know what lines mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.prompt_files.columns import Columns
from common.prompt_files.formats import GB18030, ROWS, TEXT_TABLES, UTF8
from common.prompt_files.lines import Gap, Line, lines
from common.prompt_files.sheets import csv_records, read_csv_header, read_table_header, table_rows
from common.prompt_files.unconverted import parquet_rows
from common.storage import Storage, upload_key
from common.uploads import Upload


@dataclass(frozen=True)
class PromptFile:
    """The lines that are left, and the length of the whole file, in the unit of their `end`.

    That of a Parquet file that is not converted is known from its first line on.
    """

    lines: Iterator[Line | Gap]
    length: Callable[[], int]


@contextmanager
def open_prompts(
    storage: Storage, upload: Upload, columns: Columns, offset: int = 0, number: int = 0
) -> Iterator[PromptFile]:
    """Open a file behind one of its lines: `offset` is the `end` of that line, `number` its `last`.
    `columns` gets to know the header of a table.

    Raises NotFound if there is no such file, Unavailable if the image store is, and Invalid if the file is not of its
    format.
    """
    key, as_it_was = upload_key(upload.id, upload.format), upload.encoding == GB18030 and upload.format != "json"
    encoding = GB18030 if as_it_was else UTF8
    if upload.format == "parquet":
        with parquet_rows(storage, key, columns, offset) as rows:
            yield PromptFile(rows.read(), lambda: rows.total)
    elif upload.format in (*TEXT_TABLES, *ROWS):
        is_text = upload.format in TEXT_TABLES
        with storage.open(key) as head:
            header = (
                read_csv_header(head, encoding, columns, upload.format) if is_text else read_table_header(head, columns)
            )
        start, behind = max(offset, header.end), max(number, header.number)
        with storage.open(key, start) as blocks:
            found = (csv_records if is_text else table_rows)(blocks, header, start, behind)
            yield PromptFile(found, lambda: upload.bytes)
    else:
        with storage.open(key, offset) as blocks:
            yield PromptFile(lines(blocks, upload.format, offset, number, encoding), lambda: upload.bytes)
