"""The rows of a Parquet file of prompts, from any of them on. A child process unpacks it: `parquet_child`."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from common.errors import Invalid, Unavailable
from common.prompt_files import sentence
from common.prompt_files.lines import MAX_LINE_BYTES, TOO_LONG, Line, raise_invalid
from common.sentences import Sentence

READER = (sys.executable, "-P", "-m", "common.prompt_files.parquet_child")
MAX_MEMORY = 250_000_000  # bytes that the child may use more than at its start
ReadBytes = Callable[[int, int], bytes]  # offset, size


class ParquetRows:
    """The rows from `start` on, and the `total` of the file. Raises Invalid if they cannot be read."""

    def __init__(self, child: "subprocess.Popen[bytes]", read: ReadBytes, size: int, start: int) -> None:
        assert child.stdin
        assert child.stdout
        self._child, self._read, self._start = child, read, start
        self._messages, self._input = child.stdout, child.stdin
        self._send(f"{size}\n".encode())
        self.total = int(self._receive()[2:])

    def __iter__(self) -> Iterator[Line]:
        number = self._start
        while (message := self._receive()) != b".\n":
            number += 1
            if len(message) > MAX_LINE_BYTES:
                yield Line(number, number, number, TOO_LONG, 0, raise_invalid)
            elif fields := {name: value for name, value in json.loads(message).items() if value is not None}:
                yield Line(number, number, number, fields, len(message), dict)

    def _receive(self) -> bytes:
        """The child's next message that is no request for bytes; those are answered here."""
        while (message := self._messages.readline()).startswith(b"R "):
            offset, size = map(int, message[2:].split())
            self._send(self._read(offset, size))
        if message.startswith(b"E "):
            raise Invalid(sentence("in_file", reason=Sentence(**json.loads(message[2:]))))
        if not message.endswith(b"\n"):
            raise self._exit_error()
        return message

    def _send(self, data: bytes) -> None:
        try:
            self._input.write(data)
            self._input.flush()
        except BrokenPipeError:
            raise self._exit_error() from None

    def _exit_error(self) -> Invalid | Unavailable:
        """The error of a child that ended early: it was killed, or it crashed."""
        if self._child.wait() in (-signal.SIGKILL, -signal.SIGTERM):
            return Unavailable(sentence("parquet_reader_killed"))
        return Invalid(sentence("parquet_crashed"))


@contextmanager
def parquet_rows(read: ReadBytes, size: int, start: int = 0) -> Iterator[ParquetRows]:
    """The rows from `start` on of a file of `size` bytes. The child ends with the context."""
    with subprocess.Popen(
        [*READER, str(start), str(MAX_MEMORY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            yield ParquetRows(child, read, size, start)
        finally:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                _close(pipe)


def _close(pipe: IO[Any] | None) -> None:
    try:
        if pipe:
            pipe.close()
    except BrokenPipeError:
        pass
