"""Bytes that come in blocks, split into lines. A line ends with LF, CRLF or CR. Pure; decodes nothing."""

from collections.abc import Iterable, Iterator

MAX_LINE_BYTES = 1_000_000
RawLine = tuple[int, bytes | None]  # its size, and its bytes with its end; None if they are too many

DROPPED: RawLine = (0, None)


def split_lines(blocks: Iterable[bytes]) -> Iterator[RawLine]:
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
