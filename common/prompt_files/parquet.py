"""The rows of a Parquet file of prompts, from any of them on. A process of its own reads it:

`common.prompt_files.parquet_child`.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from common.errors import Invalid, Unavailable
from common.prompt_files.lines import MAX_LINE_BYTES, TOO_LONG, Line, raise_invalid

READER = (sys.executable, "-P", "-m", "common.prompt_files.parquet_child")
MAX_MEMORY = 250_000_000  # bytes that it may take besides what any process does
ReadBytes = Callable[[int, int], bytes]  # so many bytes from an offset on


class ParquetRows:
    """The rows that are left, and how many there are in all. Raises Invalid when they cannot be read."""

    def __init__(self, child: "subprocess.Popen[bytes]", read: ReadBytes, size: int, start: int) -> None:
        assert child.stdin
        assert child.stdout
        self._child, self._read, self._start = child, read, start
        self._asks, self._answers = child.stdout, child.stdin
        self._say(f"{size}\n".encode())
        self.total = int(self._next()[2:])

    def __iter__(self) -> Iterator[Line]:
        number = self._start
        while (said := self._next()) != b".\n":
            number += 1
            if len(said) > MAX_LINE_BYTES:
                yield Line(number, number, number, TOO_LONG, 0, raise_invalid)
            elif fields := {name: value for name, value in json.loads(said).items() if value is not None}:
                yield Line(number, number, number, fields, len(said), dict)

    def _next(self) -> bytes:
        """What it says next that is no wish for bytes."""
        while (said := self._asks.readline()).startswith(b"R "):
            offset, size = map(int, said[2:].split())
            self._say(self._read(offset, size))
        if said.startswith(b"E "):
            raise Invalid(f"The file: {said[2:].decode().strip()}")
        if not said.endswith(b"\n"):
            raise self._broken()
        return said

    def _say(self, data: bytes) -> None:
        try:
            self._answers.write(data)
            self._answers.flush()
        except BrokenPipeError:
            raise self._broken() from None

    def _broken(self) -> Invalid | Unavailable:
        """Why it ended in the midst: somebody ended it, or the file did."""
        if self._child.wait() in (-9, -15):
            return Unavailable("What reads a Parquet file was ended; it is begun again.")
        return Invalid("The file cannot be read as Parquet.")


@contextmanager
def parquet_rows(read: ReadBytes, size: int, start: int = 0) -> Iterator[ParquetRows]:
    with subprocess.Popen(
        [*READER, str(start), str(MAX_MEMORY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            yield ParquetRows(child, read, size, start)
        finally:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                close(pipe)


def close(pipe: IO[Any] | None) -> None:
    try:
        if pipe:
            pipe.close()
    except BrokenPipeError:
        pass
