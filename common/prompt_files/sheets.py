"""The records of a table with columns, from any of them on: CSV, TSV, and what Parquet and XLSX are converted to. Pure.

A record of CSV may contain newlines in quotation marks. A converted table (`common.prompt_files.conversion`) has a line
of JSON for each row, so that line 7 is row 7: `["红色的圆形", 7]`, and nothing for an empty row; the names of the
columns are before line 1.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.columns import FIELDS, columns_of, field_of
from common.prompt_files.formats import UTF8
from common.prompt_files.lines import GAP_LINES, TOO_LONG, Gap, Line, decode, given, raise_invalid
from common.prompt_files.raw_lines import MAX_LINE_BYTES, split_lines

MAX_HEADER_BYTES = 100_000  # less than the largest cell of Python's CSV reader
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
TAB = {"\t": "tab"}
SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # what Excel reads and writes before the header


@dataclass(frozen=True)
class Header:
    """The columns of a table. `end` is the offset behind their names, `number` the line with them."""

    columns: tuple[str, ...]
    end: int
    number: int
    encoding: str = UTF8
    delimiter: str = ","

    def fields(self, cells: Sequence[Any]) -> dict[str, Any]:
        """The fields that a record gives; None is an empty cell. Raises Invalid for a cell without a column."""
        if any(cell is not None for cell in cells[len(self.columns) :]):
            delimiter = DELIMITERS[self.delimiter]
            raise Invalid(sentence("too_many_cells", cells=len(cells), columns=len(self.columns), delimiter=delimiter))
        found = [pair for pair in zip(self.columns, cells, strict=False) if pair[1] is not None]
        if nameless := next((cell for column, cell in found if not column), None):
            raise Invalid(sentence("cell_without_column", cell=str(nameless).strip()[:40]))
        return given(found)


# CSV and TSV


def read_csv_header(blocks: Iterable[bytes], encoding: str, format: str = "csv") -> Header:
    """Read the first line that is not blank. Raises Invalid if it does not name the columns."""
    end, delimiters = 0, list(TAB if format == "tsv" else DELIMITERS)
    for number, (size, content) in enumerate(split_lines(blocks), 1):
        end += size
        if content is None or len(content) > MAX_HEADER_BYTES:
            too_long = sentence("line_too_long", most=MAX_HEADER_BYTES)
            raise Invalid(sentence("header_wrong", number=number, reason=too_long))
        text = decode(content, encoding).lstrip("\ufeff").strip("\r\n ")
        if said := SEPARATOR.fullmatch(text):
            delimiters = [said[1]] if said[1] in DELIMITERS else delimiters
        elif text:
            names, delimiter = _split_header(text, delimiters)
            try:
                return Header(columns_of(names), end, number, encoding, delimiter)
            except Invalid as error:
                raise Invalid(sentence("header_wrong", number=number, reason=error.message)) from None
        if end > MAX_LINE_BYTES:
            raise Invalid(sentence("header_too_late", most=MAX_LINE_BYTES))
    raise Invalid(sentence("no_header"))


def _split_header(text: str, delimiters: Iterable[str]) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter that gives the most fields of a recipe."""
    found = [(next(csv.reader([text], delimiter=delimiter)), delimiter) for delimiter in delimiters]
    return max(found, key=lambda one: sum(field_of(name) in FIELDS for name in one[0]))


def csv_records(blocks: Iterable[bytes], header: Header, offset: int, number: int) -> Iterator[Line | Gap]:
    """The records from `offset` on, which is behind the header and behind `number` lines of text."""
    feed = _CsvFeed(blocks, header.encoding, offset, number)
    reader = csv.reader(feed, delimiter=header.delimiter, strict=True)
    number, start, blank = feed.begin_record(), feed.end, 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except _Dropped:
            yield Gap(number - 1, start)
            continue  # in the same record
        except csv.Error as error:
            reason = sentence("csv_quotes_wrong", reason=str(error))
            yield Line(number, feed.number, feed.end, reason, 0, raise_invalid)
        except Invalid as error:
            yield Line(number, feed.number, feed.end, error.message, 0, raise_invalid)
        else:
            filled = [cell if cell.strip() else None for cell in cells]
            if any(filled):
                yield Line(number, feed.number, feed.end, filled, feed.end - start, header.fields)
            else:
                blank += 1
                if blank % GAP_LINES == 0:
                    yield Gap(feed.number, feed.end)
        number, start = feed.begin_record(), feed.end
    yield Gap(feed.number, feed.end)


class _Dropped(Exception):
    """A block of a line that is too long was dropped."""


class _CsvFeed:
    """The lines of text for a CSV reader. Raises Invalid for a line that cannot be decoded or a record too long.

    Not a generator: the reader reads on after an error.
    """

    def __init__(self, blocks: Iterable[bytes], encoding: str, end: int, number: int) -> None:
        self._raw_lines = split_lines(blocks)
        self._encoding = encoding
        self._start = self.end = end
        self.number = number

    def begin_record(self) -> int:
        """The number of the line that the next record begins with."""
        self._start = self.end
        return self.number + 1

    def __iter__(self) -> "_CsvFeed":
        return self

    def __next__(self) -> str:
        size, content = next(self._raw_lines)
        if not size:
            raise _Dropped
        self.end, self.number = self.end + size, self.number + 1
        if content is None or self.end - self._start > MAX_LINE_BYTES:
            raise Invalid(sentence("csv_record_too_long", most=MAX_LINE_BYTES))
        return decode(content, self._encoding)


# Converted tables


def read_table_header(blocks: Iterable[bytes]) -> Header:
    """Read the names of the columns. Raises Invalid if they are none of prompts."""
    size, content = next(split_lines(blocks))
    try:
        return Header(columns_of(json.loads(content or b"[]")), size, 0)
    except Invalid as error:
        raise Invalid(sentence("in_file", reason=error.message)) from None


def table_rows(blocks: Iterable[bytes], header: Header, offset: int, number: int) -> Iterator[Line | Gap]:
    """The rows from `offset` on, which is behind the header and behind `number` rows."""
    blank = 0
    for size, content in split_lines(blocks):
        if not size:
            yield Gap(number, offset)
            continue
        offset, number = offset + size, number + 1
        if content is None:
            yield Line(number, number, offset, TOO_LONG, 0, raise_invalid)
        elif size > 1:
            yield Line(number, number, offset, content, size, lambda row: header.fields(json.loads(row)))
        else:
            blank += 1
            if blank % GAP_LINES == 0:
                yield Gap(number, offset)
    yield Gap(number, offset)
