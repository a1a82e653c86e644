"""The rows of a Parquet file of prompts, from any of them on. A child process unpacks it: `parquet_child`."""

import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from common.errors import Invalid, Unavailable
from common.prompt_files import sentence
from common.prompt_files.lines import MAX_LINE_BYTES, TOO_LONG, Gap, Line, raise_invalid
from common.sentences import Sentence

READER = (sys.executable, "-P", "-m", "common.prompt_files.parquet_child")
MAX_MEMORY = 250_000_000  # bytes that the child may use more than at its start
PIPE_BYTES = 65_536
SILENCE_MS = 50  # of the child before a Gap
ReadBytes = Callable[[int, int], bytes]  # offset, size


class ParquetRows:
    """The rows from `start` on; while the child is silent, Gaps. Raises Invalid if they cannot be read.

    `total`, the number of rows in the file, is known from the first row on.
    """

    def __init__(self, child: "subprocess.Popen[bytes]", read: ReadBytes, size: int, start: int) -> None:
        assert child.stdin
        assert child.stdout
        self._child, self._read, self._start = child, read, start
        self._output, self._input = child.stdout.fileno(), child.stdin
        self._messages, self._part = deque[bytes](), bytearray()
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self.total = 0
        self._send(f"{size}\n".encode())

    def __iter__(self) -> Iterator[Line | Gap]:
        number = self._start
        while (message := self._receive()) != b".":
            if message is None:
                yield Gap(number, number)
            elif message.startswith(b"P "):
                self.total = int(message[2:])
            elif message.startswith(b"S "):
                number += int(message[2:])
                yield Gap(number, number)
            elif message == b"L" or len(message) > MAX_LINE_BYTES:
                number += 1
                yield Line(number, number, number, TOO_LONG, 0, raise_invalid)
            else:
                number += 1
                fields = {name: value for name, value in json.loads(message).items() if value is not None}
                yield Line(number, number, number, fields, len(message), dict)
        yield Gap(number, number)

    def _receive(self) -> bytes | None:
        """The child's next message that is no request for bytes; those are answered here. None if it is silent."""
        while True:
            if not self._messages and not self._wait():
                return None
            message = self._messages.popleft()
            if message.startswith(b"E "):
                raise Invalid(sentence("in_file", reason=Sentence(**json.loads(message[2:]))))
            if not message.startswith(b"R "):
                return message
            offset, size = map(int, message[2:].split())
            self._send(self._read(offset, size))

    def _wait(self) -> bool:
        """Receive one message or more. False if the child is silent for a while."""
        while not self._messages:
            if not self._poll.poll(SILENCE_MS):
                return False
            received = os.read(self._output, PIPE_BYTES)
            if not received:
                raise self._exit_error()
            *whole, rest = received.split(b"\n")
            if whole:
                self._messages += [bytes(self._part) + whole[0], *whole[1:]]
                self._part.clear()
            self._part += rest
        return True

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
