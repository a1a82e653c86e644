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
from functools import cached_property
from itertools import zip_longest
from typing import Any

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.columns import Columns
from common.prompt_files.formats import UTF8
from common.prompt_files.lines import GAP_LINES, Gap, Line, decode, parsed_lines, raise_invalid
from common.prompt_files.raw_lines import MAX_LINE_BYTES, split_lines

MAX_HEADER_BYTES = 100_000  # less than the largest cell of Python's CSV reader
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
TAB = {"\t": "tab"}
SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # what Excel reads and writes before the header


@dataclass(frozen=True)
class Header:
    """The names of a table's columns. `end` is the offset behind them, `number` the line with them."""

    names: tuple[str, ...]
    end: int
    number: int
    encoding: str = UTF8
    delimiter: str = ","

    def by_name(self, cells: Sequence[Any]) -> dict[str, Any]:
        """The cells of a record by their columns; None is an empty cell. Raises Invalid for a cell without a column."""
        if any(cell is not None for cell in cells[len(self.names) :]):
            delimiter = DELIMITERS[self.delimiter]
            raise Invalid(sentence("too_many_cells", cells=len(cells), columns=len(self.names), delimiter=delimiter))
        for at in self.nameless:
            if at < len(cells) and cells[at] is not None:
                raise Invalid(sentence("cell_without_column", cell=str(cells[at]).strip()[:40]))
        return dict(zip_longest(self.names, cells[: len(self.names)]))

    @cached_property
    def nameless(self) -> tuple[int, ...]:
        """The places of columns without a name, other than the first ones, which are an index."""
        first = next((at for at, name in enumerate(self.names) if name.strip()), 0)
        return tuple(at for at, name in enumerate(self.names) if not name.strip() and at >= first)


# CSV and TSV


def read_csv_header(blocks: Iterable[bytes], encoding: str, columns: Columns, format: str = "csv") -> Header:
    """Read the first line that is not blank, and let `columns` know it. Raises Invalid if it does not name them.

    If the columns are numbered, that line is a record.
    """
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
            names, delimiter = _split_header(text, delimiters, columns)
            if columns.are_numbered(names):
                names = tuple(str(place + 1) for place in range(len(names)))
                end, number = end - size, number - 1
            try:
                columns.learn(names)
            except Invalid as error:
                raise Invalid(sentence("header_wrong", number=number, reason=error.message)) from None
            return Header(names, end, number, encoding, delimiter)
        if end > MAX_LINE_BYTES:
            raise Invalid(sentence("header_too_late", most=MAX_LINE_BYTES))
    raise Invalid(sentence("no_header"))


def _split_header(text: str, delimiters: Iterable[str], columns: Columns) -> tuple[tuple[str, ...], str]:
    """The names of the columns, and the delimiter that gives the most that are known."""
    found = [(tuple(next(csv.reader([text], delimiter=delimiter))), delimiter) for delimiter in delimiters]
    return max(found, key=lambda one: (sum(map(columns.knows, one[0])), columns.are_numbered(one[0]) and len(one[0])))


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
                yield Line(number, feed.number, feed.end, filled, feed.end - start, header.by_name)
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
        text = decode(content, self._encoding)
        return text.removeprefix("\ufeff") if self.end == size else text  # a file without a header


# Converted tables


def read_table_header(blocks: Iterable[bytes], columns: Columns) -> Header:
    """Read the names of the columns, and let `columns` know them. Raises Invalid if they are none of prompts.

    Behind them may be the names of those that are an index: `["id", "prompt"] ["id"]`.
    """
    size, content = next(split_lines(blocks))
    text = (content or b"[]").decode()
    names, end = json.JSONDecoder().raw_decode(text)
    try:
        columns.learn(tuple(names), tuple(json.loads(text[end:].strip() or "[]")))
    except Invalid as error:
        raise Invalid(sentence("in_file", reason=error.message)) from None
    return Header(tuple(names), size, 0)


def table_rows(blocks: Iterable[bytes], header: Header, offset: int, number: int) -> Iterator[Line | Gap]:
    """The rows from `offset` on, which is behind the header and behind `number` rows."""
    return parsed_lines(blocks, lambda row: header.by_name(json.loads(row)), offset, number)
