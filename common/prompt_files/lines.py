"""The lines of a file of prompts, from any of them on: JSON Lines, or one prompt per line. Pure.

Yields the values that each line gives; `common.prompt_files.columns` says what they mean. The bytes come in
blocks; beside a block at most one line is in memory. `common.prompt_files.sheets` reads the lines of tables.

Where a file has nothing to yield, a reader yields a `Gap` at least every GAP_LINES lines and for each block, so that
its caller can obey a deadline or a cancel there; the last thing that it yields is a Gap at the end of the file.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.formats import ROWS, UTF8
from common.prompt_files.raw_lines import MAX_LINE_BYTES, split_lines
from common.sentences import Sentence

GAP_LINES = 1000
STEP_BYTES = 100_000  # 500 ordinary lines have 30,000
STEP_S = 0.05
BOM = b"\xef\xbb\xbf"
SEPARATORS = re.compile("[\u0085\u2028\u2029]")  # some programs end a line with them
TOO_LONG = sentence("line_too_long", most=MAX_LINE_BYTES)


class Line(NamedTuple):
    """A line that is not blank, a record or a row: lines `number` to `last` of the file.

    `end` is the offset behind it in the bytes that are stored.
    """

    number: int
    last: int
    end: int
    content: Any
    size: int
    parse: Callable[[Any], dict[str, Any]]

    def cells(self) -> dict[str, Any]:
        """The JSON values by the names of their columns. Raises Invalid with a reason that follows `Line 7: `."""
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
    """The reason behind the number of its line, row or object."""
    if format in ROWS:
        return sentence("at_row", number=number, reason=reason)
    if format == "json":
        return sentence("at_item", number=number, reason=reason)
    return sentence("at_line", number=number, reason=reason)


def raise_invalid(reason: Sentence) -> dict[str, Any]:
    """The `parse` of a line that could not be read; its content is the reason."""
    raise Invalid(reason)


# JSON Lines, and one prompt per line


def lines(
    blocks: Iterable[bytes], format: str, offset: int = 0, number: int = 0, encoding: str = UTF8
) -> Iterator[Line | Gap]:
    """The lines of a file whose bytes from `offset` on come in blocks, behind `number` other lines."""
    parse = partial(_parse_prompt if format == "txt" else _parse_object, encoding=encoding)
    return parsed_lines(blocks, parse, offset, number)


def parsed_lines(
    blocks: Iterable[bytes], parse: Callable[[bytes], dict[str, Any]], offset: int, number: int
) -> Iterator[Line | Gap]:
    """The lines that are not blank, each with its `parse`."""
    blank = 0
    for size, content in split_lines(blocks):
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


def decode(content: bytes, encoding: str) -> str:
    """Raises Invalid."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise Invalid(sentence("not_encoded", encoding=encoding.upper())) from None


def _parse_prompt(content: bytes, encoding: str) -> dict[str, Any]:
    prompt = decode(content, encoding)
    if found := SEPARATORS.search(prompt):
        raise Invalid(sentence("line_separator", code=f"U+{ord(found[0]):04X}"))
    return {"prompt": prompt.strip()}


def _parse_object(content: bytes, encoding: str) -> dict[str, Any]:
    text = decode(content, encoding)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid(sentence("not_json")) from None
    if not isinstance(found, dict):
        raise Invalid(sentence("not_an_object"))
    return found
