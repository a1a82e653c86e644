"""A file of prompts, read line by line from anywhere in it: JSON Lines, or a prompt a line.

Yields what each line says; whether that makes a recipe is for `common.plan` to say.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from common.errors import Invalid

MAX_LINE_BYTES = 1_000_000
MOST_BYTES = 16_000_000  # of the lines that are looked at together: a chunk of ordinary ones has half a million
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line that is not blank. `end` is where the next one starts, in bytes from the start of the file."""

    number: int
    end: int
    content: bytes

    def fields(self, format: str) -> dict[str, Any]:
        """The fields of a draft. Raises Invalid in words that go on from `line 7: …`."""
        try:
            text = self.content.decode("utf-8")
        except UnicodeDecodeError:
            raise Invalid("it is not UTF-8.") from None
        if format == "txt":
            return {"prompt": text}
        try:
            fields = json.loads(text)
        except ValueError:
            raise Invalid("it is not JSON.") from None
        if not isinstance(fields, dict):
            raise Invalid('it is not a JSON object such as {"prompt": "…"}.')
        return fields


def lines(blocks: Iterable[bytes], offset: int = 0, number: int = 0) -> Iterator[Line]:
    """The lines of a file whose bytes from `offset` on come in blocks; `number` lines are before that.

    Raises Invalid for a line of more than 1 MB: it is held in memory.
    """
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for content in whole:
            number, end = number + 1, offset + len(content) + 1
            if found := _line(number, offset, end, content):
                yield found
            offset = end
        if len(rest) > MAX_LINE_BYTES:
            raise Invalid(f"Line {number + 1} of the file is longer than {MAX_LINE_BYTES:,} bytes.")
    if found := _line(number + 1, offset, offset + len(rest), rest):
        yield found


def some(found: Iterator[Line], most: int) -> list[Line]:
    """The next lines: at most so many, and no more once they are large together."""
    taken, size = list[Line](), 0
    for line in islice(found, most):
        taken.append(line)
        size += len(line.content)
        if size >= MOST_BYTES:
            break
    return taken


def _line(number: int, start: int, end: int, content: bytes) -> Line | None:
    content = (content.removeprefix(BOM) if start == 0 else content).strip()
    return Line(number, end, content) if content else None
