"""A file of prompts as it is uploaded: what it is, told by its bytes, and what is stored of it. Knows no HTTP.

What the farm stores has lines: text in UTF-8 or GB18030 as it is, and UTF-16, JSON arrays, Parquet, XLSX and compressed
files as what a child process with limits makes of them, once. So whoever reads it later streams lines.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import BinaryIO, NamedTuple

from api import sentence
from api.deps import AppState
from api.services.uploads import HashingFile, require_room, save, temporary_file
from common.accounts.keys import Caller
from common.errors import Invalid
from common.prompt_files import encodings
from common.prompt_files.conversion.convert import convert
from common.prompt_files.formats import (
    BINARY,
    CONVERTED,
    HEAD_BYTES,
    TABLE,
    UTF8,
    UTF16,
    binary_format_of,
    compression_of,
    text_format_of,
)
from common.uploads import Upload

BLOCK_BYTES = 1_000_000
OLD_EXCEL = b"\xd0\xcf\x11\xe0"  # an .xls, or a workbook with a password


class Declared(NamedTuple):
    """What the client says of a file: its format by its media type, or for certain, and the encoding of its text."""

    format: str | None
    is_certain: bool = False
    charset: str | None = None


def takes_long(file: HashingFile, declared: Declared) -> bool:
    """Whether a child process must convert this file."""
    head = _head(file.file)
    if compression_of(head) or binary_format_of(head):
        return True
    text = head.replace(b"\0", b"").decode(errors="replace")  # of UTF-16 too, as far as it is ASCII
    return (not declared.is_certain and text_format_of(text, declared.format) == "json") or declared.format == "json"


def save_prompts(state: AppState, caller: Caller, file: HashingFile, declared: Declared) -> tuple[Upload, datetime]:
    """Store the prompts of a file, and when they were recorded.

    Raises Invalid, which names the encodings that were tried, and LimitReached, NoRoom and Unavailable.
    """
    require_room(state, caller)
    with _lines(file, declared, state.settings.upload_limit) as (lines, format, encoding):
        return save(state, caller.tenant_id, lines, format, encoding=encoding)


@contextmanager
def _lines(file: HashingFile, declared: Declared, most: int) -> Iterator[tuple[HashingFile, str, str | None]]:
    """What is stored of a file, the format as which it is stored, and the encoding of its text."""
    with ExitStack() as stack:
        if compression := compression_of(_head(file.file)):
            file = stack.enter_context(_converted(file, compression, most))
        format, codec = _detected(file.file, declared)
        if format in CONVERTED:
            file = stack.enter_context(_converted(file, format, most, codec or UTF8))
        elif codec and codec.startswith(UTF16):
            file = stack.enter_context(_as_utf8(file.file, codec))
        yield file, TABLE if format == "parquet" else format, encodings.name_of(codec) if codec else None


def _detected(file: BinaryIO, declared: Declared) -> tuple[str, str | None]:
    """The format of a file, and the codec of its text. Raises Invalid."""
    head = _head(file)
    if head.startswith(OLD_EXCEL):
        raise Invalid(sentence("file_is_old_excel"))
    if found := binary_format_of(head):
        if found == "parquet":
            _check_parquet(file)
        return found, None
    if declared.format == "parquet":
        raise Invalid(sentence("not_parquet"))
    if declared.format == "xlsx":
        raise Invalid(sentence("not_xlsx"))
    codec = encodings.codec_of(file, declared.charset)
    if declared.is_certain and declared.format:
        return declared.format, codec
    return text_format_of(head.decode(codec, "replace"), declared.format), codec


def _check_parquet(file: BinaryIO) -> None:
    """Raises Invalid for a truncated file."""
    magic = BINARY["parquet"]
    file.seek(max(len(magic), file.seek(0, 2) - len(magic)))
    if file.read() != magic:
        raise Invalid(sentence("not_parquet"))


@contextmanager
def _converted(file: HashingFile, kind: str, most: int, codec: str = UTF8) -> Iterator[HashingFile]:
    with temporary_file() as target:
        convert(file.file, target.file, kind, codec, most)
        target.measure()
        yield target


@contextmanager
def _as_utf8(file: BinaryIO, codec: str) -> Iterator[HashingFile]:
    with temporary_file() as target:
        for block in encodings.as_utf8(file, codec):
            target.write(block)
        yield target


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD_BYTES)
