"""The lines of a file of prompts, from any of them on: JSON Lines, one prompt per line, or CSV. Pure.

Yields the fields that each line gives; `common.batches.plan` makes recipes of them. A line ends with LF, CRLF or CR. A
line of CSV is a record, which may contain newlines in quotation marks. The bytes come in blocks; beside a block at most
one line is in memory.

Where a file has nothing to yield, a reader yields a `Gap` at least every GAP_LINES lines and for each block, so that
its caller can obey a deadline or a cancel there; the last thing that it yields is a Gap at the end of the file.
"""

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.columns import FIELDS, columns_of, field_of, fields_of, parse_cell
from common.sentences import Sentence

MAX_LINE_BYTES = 1_000_000
MAX_HEADER_BYTES = 100_000  # less than the largest cell of Python's CSV reader
GAP_LINES = 1000
STEP_BYTES = 100_000  # 500 ordinary lines have 30,000
STEP_S = 0.05
BOM = b"\xef\xbb\xbf"
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
TOO_LONG = sentence("line_too_long", most=MAX_LINE_BYTES)


class Line(NamedTuple):
    """A line that is not blank, or a record: lines `number` to `last` of the file. In Parquet it is a row.

    `end` is the offset behind it in bytes; in Parquet, the number of rows up to it.
    """

    number: int
    last: int
    end: int
    content: Any
    size: int
    parse: Callable[[Any], dict[str, Any]]

    def fields(self) -> dict[str, Any]:
        """The fields of a draft. Raises Invalid with a reason that follows `Line 7: `."""
        return self.parse(self.content)


class Gap(NamedTuple):
    """Nothing to yield between the last Line and here: `last` and `end` are those of the last whole line."""

    last: int
    end: int


class Step(NamedTuple):
    """The next lines, perhaps none. The file is read up to `end`, which is behind line `last`."""

    lines: list[Line]
    last: int
    end: int
    is_last: bool


def steps(found: Iterator[Line | Gap], most: int) -> Iterator[Step]:
    """All lines, in steps that a caller can check in a fraction of a second: at most so many lines, and fewer once they
    have STEP_BYTES together or reading has taken STEP_S. A step that is not the last one may have no lines.
    """
    item, behind = next(found, None), Gap(0, 0)
    while True:
        taken, size, until = list[Line](), 0, time.monotonic() + STEP_S
        while item:
            if isinstance(item, Line):
                if len(taken) >= most or size >= STEP_BYTES:
                    break
                taken.append(item)
                size += item.size
            behind = Gap(item.last, item.end)
            item = next(found, None)
            if time.monotonic() > until:
                break
        yield Step(taken, behind.last, behind.end, item is None)
        if item is None:
            return


def at_line(format: str, number: int, reason: str) -> Sentence:
    """The reason behind the number of its line; in Parquet, of its row."""
    if format == "parquet":
        return sentence("at_row", number=number, reason=reason)
    return sentence("at_line", number=number, reason=reason)


def raise_invalid(reason: Sentence) -> dict[str, Any]:
    """The `parse` of a line that could not be read; its content is the reason."""
    raise Invalid(reason)


# JSON Lines, and one prompt per line


def lines(blocks: Iterable[bytes], format: str, offset: int = 0, number: int = 0) -> Iterator[Line | Gap]:
    """The lines of a file whose bytes from `offset` on come in blocks, behind `number` other lines."""
    parse, blank = PARSERS[format], 0
    for size, content in _split_lines(blocks):
        if not size:
            yield Gap(number, offset)
            continue
        start, offset, number = offset, offset + size, number + 1
        if content is None:
            yield Line(number, number, offset, TOO_LONG, 0, raise_invalid)
        elif content := (content.removeprefix(BOM) if start == 0 else content).strip():
            yield Line(number, number, offset, content, size, parse)
        else:
            blank += 1
            if blank % GAP_LINES == 0:
                yield Gap(number, offset)
    yield Gap(number, offset)


def _parse_prompt(content: bytes) -> dict[str, Any]:
    return {"prompt": _decode(content, "utf-8")}


def _parse_object(content: bytes) -> dict[str, Any]:
    text = _decode(content, "utf-8")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid(sentence("not_json")) from None
    if not isinstance(fields, dict):
        raise Invalid(sentence("not_an_object"))
    return fields_of(fields)


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise Invalid(sentence("not_encoded", encoding=encoding.upper())) from None


PARSERS = {"jsonl": _parse_object, "txt": _parse_prompt}


# CSV


@dataclass(frozen=True)
class CsvHeader:
    """The header of a CSV file. `end` is the offset behind its line, `number` that line's number."""

    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    end: int
    number: int

    def fields(self, cells: list[str]) -> dict[str, Any]:
        """The fields that a record gives. Raises Invalid for a cell without a column."""
        if any(cells[len(self.columns) :]):
            delimiter = DELIMITERS[self.delimiter]
            raise Invalid(sentence("too_many_cells", cells=len(cells), columns=len(self.columns), delimiter=delimiter))
        found = [(column, cell.strip()) for column, cell in zip(self.columns, cells, strict=False)]
        if nameless := next((cell for column, cell in found if cell and not column), None):
            raise Invalid(sentence("cell_without_column", cell=nameless[:40]))
        return {column: parse_cell(column, cell) for column, cell in found if cell}


def read_csv_header(blocks: Iterable[bytes], encoding: str) -> CsvHeader:
    """Read the first line that is not blank. Raises Invalid if it does not name the columns."""
    end = 0
    for number, (size, content) in enumerate(_split_lines(blocks), 1):
        end += size
        if content is None or len(content) > MAX_HEADER_BYTES:
            too_long = sentence("line_too_long", most=MAX_HEADER_BYTES)
            raise Invalid(sentence("header_wrong", number=number, reason=too_long))
        if text := _decode(content, encoding).lstrip("\ufeff").strip("\r\n "):
            names, delimiter = _split_header(text)
            try:
                return CsvHeader(encoding, delimiter, columns_of(names), end, number)
            except Invalid as error:
                raise Invalid(sentence("header_wrong", number=number, reason=error.message)) from None
        if end > MAX_LINE_BYTES:
            raise Invalid(sentence("header_too_late", most=MAX_LINE_BYTES))
    raise Invalid(sentence("no_header"))


def _split_header(text: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter that gives the most fields of a recipe."""
    found = [(next(csv.reader([text], delimiter=delimiter)), delimiter) for delimiter in DELIMITERS]
    return max(found, key=lambda one: sum(field_of(name) in FIELDS for name in one[0]))


def csv_records(blocks: Iterable[bytes], header: CsvHeader, offset: int, number: int) -> Iterator[Line | Gap]:
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
            if any(cell.strip() for cell in cells):
                yield Line(number, feed.number, feed.end, cells, feed.end - start, header.fields)
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
        self._raw_lines = _split_lines(blocks)
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
        return _decode(content, self._encoding)


# Bytes


RawLine = tuple[int, bytes | None]  # its size, and its bytes with its end; None if they are too many

DROPPED: RawLine = (0, None)


def _split_lines(blocks: Iterable[bytes]) -> Iterator[RawLine]:
    """Split behind each LF, CRLF or CR. The bytes of a line that is too long are dropped, with a DROPPED each time."""
    rest, dropped = b"", 0
    for block in blocks:
        whole = (rest + block).splitlines(keepends=True)
        rest = whole.pop() if whole and not whole[-1].endswith(b"\n") else b""  # the LF of a CRLF may follow
        for content in whole:
            size = dropped + len(content)
            dropped = 0
            yield size, content if size <= MAX_LINE_BYTES else None
        if dropped + len(rest) > MAX_LINE_BYTES:
            size, rest = dropped + len(rest), b"\r" if rest.endswith(b"\r") else b""
            dropped = size - len(rest)
            yield DROPPED
    if rest or dropped:
        size = dropped + len(rest)
        yield size, rest if size <= MAX_LINE_BYTES else None


def count_line_ends(blocks: Iterable[bytes]) -> int:
    """How many lines end in these bytes."""
    count, last = 0, b""
    for block in blocks:
        joined = last + block  # so that a CRLF may be in two blocks
        count += block.count(b"\n") + block.count(b"\r") - joined.count(b"\r\n")
        last = block[-1:]
    return count
