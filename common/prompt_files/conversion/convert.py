"""Converting a file of prompts in a child process with limits of memory, time and size. Knows no storage.

`child` says what it can convert, and to what.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

from common.errors import Invalid, NoRoom, Unavailable
from common.prompt_files import sentence
from common.prompt_files.conversion.child import FULL, REFUSED
from common.prompt_files.formats import UTF8
from common.sentences import Sentence

CONVERTER = (sys.executable, "-P", "-m", "common.prompt_files.conversion.child")
MAX_MEMORY = 400_000_000  # bytes that the child may use more than at its start
MAX_S = 120  # of a processor
MAX_WAIT_S = 300.0
MAX_BYTES = 2_000_000_000

Child = subprocess.Popen[bytes]


def convert(source: BinaryIO, target: IO[bytes], kind: str, codec: str = UTF8, most: int = MAX_BYTES) -> None:
    """Convert a file of this kind, a format or a compression, to at most `most` bytes. Both files are real ones.

    Raises Invalid, NoRoom, and Unavailable if the child was killed.
    """
    with start(source, target, kind, codec, most) as child:
        until = time.monotonic() + MAX_WAIT_S
        while not has_ended(child, until, MAX_WAIT_S):
            pass


@contextmanager
def start(source: BinaryIO, target: IO[bytes], kind: str, codec: str = UTF8, most: int = MAX_BYTES) -> Iterator[Child]:
    """A child that converts the whole source. It ends with the context."""
    source.seek(0)
    limits = map(str, (MAX_MEMORY, MAX_S, most))
    with subprocess.Popen(
        [*CONVERTER, kind, *limits, codec], stdin=source, stdout=target, stderr=subprocess.PIPE
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def has_ended(child: Child, until: float, seconds: float) -> bool:
    """Whether the child ends within these seconds. Raises the error that it ended with, Invalid behind `until`."""
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        if time.monotonic() > until:
            raise Invalid(sentence("file_takes_time", most=MAX_S)) from None
        return False
    status = child.returncode
    if status == REFUSED:
        raise Invalid(Sentence(**json.loads(said)))
    if status == -signal.SIGXCPU:
        raise Invalid(sentence("file_takes_time", most=MAX_S))
    if status == FULL:
        raise NoRoom(sentence("no_room_to_unpack"))
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        raise Unavailable(sentence("converter_killed"))
    if status:
        raise Invalid(sentence("converter_crashed", most=MAX_MEMORY))
    return True
