"""The lines of a file of prompts, from any of them on: JSON Lines, one prompt per line, or CSV. Pure.

Yields the fields that each line gives; `common.batches.plan` makes recipes of them. A line of CSV is a record, which
may contain newlines in quotation marks. The bytes come in blocks; beside a block at most one line is in memory.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.columns import FIELDS, columns_of, field_of, fields_of, parse_cell
from common.sentences import Sentence

MAX_LINE_BYTES = 1_000_000
MAX_CHUNK_BYTES = 16_000_000  # a chunk of ordinary lines has half a million
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


class RawLine(NamedTuple):
    """The bytes up to a newline, with it. `content` is None if they are too many."""

    size: int
    content: bytes | None


def take(found: Iterator[Line], most: int) -> list[Line]:
    """The next lines: at most so many, and fewer once they have MAX_CHUNK_BYTES together."""
    taken, size = list[Line](), 0
    for line in islice(found, most):
        taken.append(line)
        size += line.size
        if size >= MAX_CHUNK_BYTES:
            break
    return taken


def at_line(format: str, number: int, reason: str) -> Sentence:
    """The reason behind the number of its line; in Parquet, of its row."""
    if format == "parquet":
        return sentence("at_row", number=number, reason=reason)
    return sentence("at_line", number=number, reason=reason)


def raise_invalid(reason: Sentence) -> dict[str, Any]:
    """The `parse` of a line that could not be read; its content is the reason."""
    raise Invalid(reason)


# JSON Lines, and one prompt per line


def lines(blocks: Iterable[bytes], format: str, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """The lines of a file whose bytes from `offset` on come in blocks, behind `number` other lines."""
    parse = PARSERS[format]
    for size, content in _split_lines(blocks):
        start, offset, number = offset, offset + size, number + 1
        if content is None:
            yield Line(number, number, offset, TOO_LONG, 0, raise_invalid)
        elif content := (content.removeprefix(BOM) if start == 0 else content).strip():
            yield Line(number, number, offset, content, size, parse)


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
        if content is None:
            raise Invalid(sentence("at_line", number=number, reason=TOO_LONG))
        if text := content.decode(encoding).lstrip("\ufeff").strip("\r\n "):
            names, delimiter = _split_header(text)
            try:
                return CsvHeader(encoding, delimiter, columns_of(names), end, number)
            except Invalid as error:
                raise Invalid(sentence("header_wrong", number=number, reason=error.message)) from None
    raise Invalid(sentence("no_header"))


def _split_header(text: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter that gives the most fields of a recipe."""
    found = [(next(csv.reader([text], delimiter=delimiter)), delimiter) for delimiter in DELIMITERS]
    return max(found, key=lambda one: sum(field_of(name) in FIELDS for name in one[0]))


def csv_records(blocks: Iterable[bytes], header: CsvHeader, offset: int, number: int) -> Iterator[Line]:
    """The records from `offset` on, which is behind the header and behind `number` lines of text."""
    feed = _CsvFeed(blocks, header.encoding, offset, number)
    reader = csv.reader(feed, delimiter=header.delimiter, strict=True)
    while True:
        number, start = feed.begin_record(), feed.end
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = sentence("csv_quotes_wrong", reason=str(error))
            yield Line(number, feed.number, feed.end, reason, 0, raise_invalid)
        except Invalid as error:
            yield Line(number, feed.number, feed.end, error.message, 0, raise_invalid)
        else:
            if any(cell.strip() for cell in cells):
                yield Line(number, feed.number, feed.end, cells, feed.end - start, header.fields)


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
        self.end, self.number = self.end + size, self.number + 1
        if content is None or self.end - self._start > MAX_LINE_BYTES:
            raise Invalid(sentence("csv_record_too_long", most=MAX_LINE_BYTES))
        return _decode(content, self._encoding)


# Bytes


def _split_lines(blocks: Iterable[bytes]) -> Iterator[RawLine]:
    """Split after each newline. The bytes of a line that is too long are dropped."""
    rest, dropped = b"", 0
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for content in whole:
            yield _raw_line(content + b"\n", dropped)
            dropped = 0
        if len(rest) > MAX_LINE_BYTES:
            dropped, rest = dropped + len(rest), b""
    if rest or dropped:
        yield _raw_line(rest, dropped)


def _raw_line(content: bytes, dropped: int) -> RawLine:
    size = dropped + len(content)
    return RawLine(size, None if size > MAX_LINE_BYTES else content)
