"""Uploads: check a file, measure it and put it into storage. Knows no HTTP.

One that finds no room, in the temporary folder or in storage, leaves nothing behind. `api.services.prompt_upload` tells
what a file of prompts is and converts it.
"""

import hashlib
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
from common.errors import Error, NoRoom
from common.storage import MEDIA_TYPES as IMAGE_TYPES
from common.storage import upload_key
from common.uploads import Upload

BLOCK_BYTES = 1_000_000
LINES = "application/jsonl"  # what JSON, Parquet and XLSX are converted to
MEDIA_TYPES = {
    **IMAGE_TYPES,
    "txt": "text/plain",
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    **dict.fromkeys(("jsonl", "json", "table", "xlsx"), LINES),
}


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

    def measure(self) -> None:
        """Count and hash the bytes that another process has written to the file."""
        self.file.seek(0)
        while block := self.file.read(BLOCK_BYTES):
            self.bytes += len(block)
            self._digest.update(block)

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


def save_image(state: AppState, caller: Caller, file: HashingFile) -> tuple[Upload, datetime]:
    """Store an image as a plain PNG, and when it was recorded. Raises PictureRefused and LimitReached."""
    require_room(state, caller)
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


def require_room(state: AppState, caller: Caller) -> None:
    """Raises LimitReached if the tenant stores as many bytes as it may."""
    with transaction(state.autocommit) as connection:
        admission.admit(connection, caller.tenant_id, state.limits_of(caller), uploads=1)
