"""Uploads: check a file, measure it and put it into storage. Knows no HTTP.

One that finds no room, in the temporary folder or in storage, leaves nothing behind.

The encoding of a CSV file is not guessed: it is the one that its client names, or else UTF-8 if all of it is valid
UTF-8, or else GB18030, which Excel writes on a Chinese Windows (GBK and GB2312 are subsets).
"""

import codecs
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import BinaryIO
from uuid import UUID

from api import sentence
from api.deps import AppState
from common import uploads
from common.accounts import admission
from common.accounts.keys import Caller
from common.db import new_id, transaction
from common.disks import NO_ROOM
from common.errors import Error, Invalid, NoRoom
from common.prompt_files.lines import count_line_ends
from common.prompt_files.reader import UTF8
from common.storage import MEDIA_TYPES as IMAGE_TYPES
from common.storage import upload_key
from common.uploads import Upload

MEDIA_TYPES = {
    **IMAGE_TYPES,
    "jsonl": "application/jsonl",
    "txt": "text/plain; charset=utf-8",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}
GB18030 = "gb18030"
CHINESE = ("gb18030", "gbk", "gb2312")  # as Python names them; the first one includes the others
NAMES = {UTF8: "UTF-8", GB18030: "GB18030"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 1_000_000
PARQUET_MAGIC = b"PAR1"  # at both ends of a Parquet file


class HashingFile:
    """Writes to another file and counts and hashes the bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self._digest = hashlib.sha256()

    def write(self, block: bytes) -> int:
        """Raises NoRoom."""
        self.bytes += len(block)
        self._digest.update(block)
        with _room_or_error():
            return self.file.write(block)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def temporary_file() -> Iterator[HashingFile]:
    """A file that is gone after the block. Raises NoRoom, also where what the block has written finds none."""
    with _room_or_error(), tempfile.TemporaryFile() as file:
        yield HashingFile(file)


@contextmanager
def _room_or_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoom(sentence("no_temporary_room")) from error


def save_prompts(
    state: AppState, caller: Caller, file: HashingFile, format: str, charset: str | None
) -> tuple[Upload, datetime]:
    """Store a file of prompts, and when it was recorded.

    Raises Invalid, which names the encodings that were tried, and LimitReached.
    """
    _require_room(state, caller)
    if format == "parquet":
        check_parquet(file.file)
    encoding = encoding_of(file.file, charset) if format == "csv" else None
    return save(state, caller.tenant_id, file, format, encoding=encoding)


def save_image(state: AppState, caller: Caller, file: HashingFile) -> tuple[Upload, datetime]:
    """Store an image as a plain PNG, and when it was recorded. Raises PictureRefused and LimitReached."""
    _require_room(state, caller)
    from api.services.image_upload import normalise  # loads Pillow, which other requests do not need

    file.file.seek(0)
    with temporary_file() as normalised:
        width, height = normalise(file.file, file.bytes, state.settings.picture_pixels, normalised)
        return save(state, caller.tenant_id, normalised, uploads.PICTURE, width, height)


def save(
    state: AppState,
    tenant_id: UUID,
    file: HashingFile,
    format: str,
    width: int | None = None,
    height: int | None = None,
    encoding: str | None = None,
) -> tuple[Upload, datetime]:
    """Record a whole file, then put it into storage; when it was recorded. Raises Unavailable, and NoRoom."""
    upload = Upload(new_id(), format, file.bytes, file.sha256, width, height, encoding)
    file.file.seek(0)  # first: it flushes, which may find no room
    with transaction(state.engine) as connection:
        recorded_at = uploads.record(connection, tenant_id, upload)
    try:
        state.storage.put_file(upload_key(upload.id, format), file.file, MEDIA_TYPES[format])
    except NoRoom:
        with suppress(Error), transaction(state.engine) as connection:  # else the sweep deletes it, in some weeks
            uploads.forget(connection, upload.id)
        raise
    return upload, recorded_at


def discard(state: AppState, upload_id: UUID, format: str) -> None:
    """Delete a file that nothing has referred to, as far as the services are up. Else the sweep does, in some weeks."""
    with suppress(Error):
        state.storage.delete([upload_key(upload_id, format)])
        with transaction(state.engine) as connection:
            uploads.forget(connection, upload_id)


def encoding_of(file: BinaryIO, charset: str | None) -> str:
    """The encoding of a whole CSV file. Raises Invalid, which names the encodings that were tried."""
    file.seek(0)
    if file.read(2) in UTF16:
        raise Invalid(sentence("file_is_utf16"))
    tried = (_supported(charset),) if charset else (UTF8, GB18030)
    invalid_lines = list[int]()
    for encoding in tried:
        if (line := _first_invalid_line(file, encoding)) is None:
            return encoding
        invalid_lines.append(line)
    if charset:
        raise Invalid(sentence("not_in_charset", line=invalid_lines[0], encoding=NAMES[tried[0]]))
    raise Invalid(sentence("encoding_unknown", utf8=invalid_lines[0], gb18030=invalid_lines[1]))


def check_parquet(file: BinaryIO) -> None:
    """Raises Invalid for a file that is not Parquet, or is truncated."""
    ends = []
    for offset, whence in ((0, os.SEEK_SET), (-len(PARQUET_MAGIC), os.SEEK_END)):
        try:
            file.seek(offset, whence)
        except OSError:
            break
        ends.append(file.read(len(PARQUET_MAGIC)))
    if ends != [PARQUET_MAGIC, PARQUET_MAGIC]:
        raise Invalid(sentence("not_parquet"))


def _require_room(state: AppState, caller: Caller) -> None:
    """Raises LimitReached if the tenant stores as many bytes as it may."""
    with transaction(state.autocommit) as connection:
        admission.admit(connection, caller.tenant_id, state.limits_of(caller), uploads=1)


def _supported(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        name = ""
    if name in CHINESE:
        return GB18030
    if name in (UTF8, "utf-8-sig", "ascii"):
        return UTF8
    raise Invalid(sentence("charset_unsupported"))


def _first_invalid_line(file: BinaryIO, encoding: str) -> int | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    file.seek(0)
    read = 0
    while True:
        block = file.read(BLOCK_BYTES)
        read += len(block)
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return 1 + _line_ends(file, read - len(error.object) + error.start)
        if not block:
            return None


def _line_ends(file: BinaryIO, size: int) -> int:
    """How many lines end in the first `size` bytes."""
    file.seek(0)
    return count_line_ends(file.read(min(BLOCK_BYTES, size - at)) for at in range(0, size, BLOCK_BYTES))
