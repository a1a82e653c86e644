"""The lines of a file of prompts, from anywhere in it: JSON Lines, a prompt a line, or CSV.

Yields what each line says; whether that makes a recipe is for `common.batches.plan` to say. A line of CSV is a
record, which goes on over newlines in quotes. Bytes come in blocks, and at most one line is in memory beside them.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from common.errors import Invalid
from common.prompt_files.columns import FIELDS, columns_of, field_of, fields_of, parse_cell

MAX_LINE_BYTES = 1_000_000
MAX_CHUNK_BYTES = 16_000_000  # of the lines that are looked at together: a chunk of ordinary ones has half a million
BOM = b"\xef\xbb\xbf"
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
TOO_LONG = f"it is longer than {MAX_LINE_BYTES:,} bytes."


class Line(NamedTuple):
    """One line that is not blank: number `number` to `last` of the file. `end` is where the next one starts in it."""

    number: int
    last: int
    end: int
    content: Any
    size: int
    read: Callable[[Any], dict[str, Any]]

    def fields(self) -> dict[str, Any]:
        """The fields of a draft. Raises Invalid in words that go on from `line 7: …`."""
        return self.read(self.content)


class RawLine(NamedTuple):
    """What lies between two newlines, with the second one; no content if it is too long."""

    size: int
    content: bytes | None


def take(found: Iterator[Line], most: int) -> list[Line]:
    """The next lines: at most so many, and no more once they are large together."""
    taken, size = list[Line](), 0
    for line in islice(found, most):
        taken.append(line)
        size += line.size
        if size >= MAX_CHUNK_BYTES:
            break
    return taken


def raise_invalid(reason: str) -> dict[str, Any]:
    """Reads a line of which it is known already that it cannot be read."""
    raise Invalid(reason)


# JSON Lines, and a prompt a line


def lines(blocks: Iterable[bytes], format: str, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """The lines of a file whose bytes from `offset` on come in blocks; `number` lines are before that."""
    read = PARSERS[format]
    for size, content in _split_lines(blocks):
        start, offset, number = offset, offset + size, number + 1
        if content is None:
            yield Line(number, number, offset, TOO_LONG, 0, raise_invalid)
        elif content := (content.removeprefix(BOM) if start == 0 else content).strip():
            yield Line(number, number, offset, content, size, read)


def _prompt(content: bytes) -> dict[str, Any]:
    return {"prompt": _text(content)}


def _object(content: bytes) -> dict[str, Any]:
    text = _text(content)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("it is not JSON.") from None
    if not isinstance(fields, dict):
        raise Invalid('it is not a JSON object such as {"prompt": "…"}.')
    return fields_of(fields)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("it is not UTF-8.") from None


PARSERS = {"jsonl": _object, "txt": _prompt}


# CSV


@dataclass(frozen=True)
class CsvHeader:
    """What the first line of a CSV file says of the others. `end` and `number` as those of that line."""

    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    end: int
    number: int

    def fields(self, cells: list[str]) -> dict[str, Any]:
        if any(cells[len(self.columns) :]):
            raise Invalid(
                f"it has {len(cells)} cells for {len(self.columns)} columns; "
                f"what has a {DELIMITERS[self.delimiter]} in it must be in quotes."
            )
        found = [(column, cell.strip()) for column, cell in zip(self.columns, cells, strict=False)]
        if nameless := next((cell for column, cell in found if cell and not column), None):
            raise Invalid(f"{nameless[:40]!r} is in a column without a name.")
        return {column: parse_cell(column, cell) for column, cell in found if cell}


def read_csv_header(blocks: Iterable[bytes], encoding: str) -> CsvHeader:
    """Reads the first line that is not blank. Raises Invalid when it does not name the columns."""
    end = 0
    for number, (size, content) in enumerate(_split_lines(blocks), 1):
        end += size
        if content is None:
            raise Invalid(f"Line {number}: {TOO_LONG}")
        if text := content.decode(encoding).lstrip("\ufeff").strip("\r\n "):
            cells, delimiter = _header(text)
            try:
                return CsvHeader(encoding, delimiter, columns_of(cells), end, number)
            except Invalid as error:
                raise Invalid(f"Line {number} must name the columns: {error.message}") from None
    raise Invalid("Its file has no prompts.")


def _header(text: str) -> tuple[list[str], str]:
    """Its names, and what is between them: that by which most of them are known."""
    found = [(next(csv.reader([text], delimiter=delimiter)), delimiter) for delimiter in DELIMITERS]
    return max(found, key=lambda one: sum(field_of(name) in FIELDS for name in one[0]))


def csv_records(blocks: Iterable[bytes], table: CsvHeader, offset: int, number: int) -> Iterator[Line]:
    """The records from `offset` on, which is behind the header; `number` lines of text are before that."""
    feed = _CsvFeed(blocks, table.encoding, offset, number)
    reader = csv.reader(feed, delimiter=table.delimiter, strict=True)
    while True:
        number, start = feed.begin(), feed.end
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(number, feed.number, feed.end, f"it is not CSV: {error}.", 0, raise_invalid)
        except Invalid as error:
            yield Line(number, feed.number, feed.end, error.message, 0, raise_invalid)
        else:
            if any(cell.strip() for cell in cells):
                yield Line(number, feed.number, feed.end, cells, feed.end - start, table.fields)


class _CsvFeed:
    """Gives a CSV reader the lines of text that it asks for. Raises Invalid once a record is too long.

    No generator: the reader asks on after that.
    """

    def __init__(self, blocks: Iterable[bytes], encoding: str, end: int, number: int) -> None:
        self._cuts = _split_lines(blocks)
        self._encoding = encoding
        self._begun = self.end = end
        self.number = number

    def begin(self) -> int:
        """The number of the line that the next record begins with."""
        self._begun = self.end
        return self.number + 1

    def __iter__(self) -> "_CsvFeed":
        return self

    def __next__(self) -> str:
        size, content = next(self._cuts)
        self.end, self.number = self.end + size, self.number + 1
        if content is None or self.end - self._begun > MAX_LINE_BYTES:
            raise Invalid(TOO_LONG)
        try:
            return content.decode(self._encoding)
        except UnicodeDecodeError:
            raise Invalid(f"it is not {self._encoding.upper()}.") from None


# Bytes


def _split_lines(blocks: Iterable[bytes]) -> Iterator[RawLine]:
    """Cuts after each newline. Of what is too long nothing is kept."""
    rest, lost = b"", 0
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for content in whole:
            yield _raw_line(content + b"\n", lost)
            lost = 0
        if len(rest) > MAX_LINE_BYTES:
            lost, rest = lost + len(rest), b""
    if rest or lost:
        yield _raw_line(rest, lost)


def _raw_line(content: bytes, lost: int) -> RawLine:
    size = lost + len(content)
    return RawLine(size, None if size > MAX_LINE_BYTES else content)
