"""Files on their way from a request into storage: measured as they come, stored, forgotten when they are in vain."""

import hashlib
from contextlib import suppress
from typing import BinaryIO

from common.batches import Upload
from common.db import new_id
from common.errors import Unavailable
from common.storage import Storage, upload_key

MEDIA_TYPES = {"jsonl": "application/jsonl", "txt": "text/plain; charset=utf-8"}


class Spool:
    """What has come of a file lies in another one, a temporary one of its owner's."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self._digest = hashlib.sha256()

    def write(self, block: bytes) -> None:
        self.bytes += len(block)
        self._digest.update(block)
        self.file.write(block)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def store(storage: Storage, spool: Spool, format: str) -> Upload:
    """Put a whole file into storage; no row knows it yet. Raises Unavailable."""
    upload = Upload(new_id(), format, spool.bytes, spool.sha256)
    spool.file.seek(0)
    storage.put_file(upload_key(upload.id, format), spool.file, MEDIA_TYPES[format])
    return upload


def forget(storage: Storage, upload: Upload) -> None:
    """Delete a file that no row knows, unless storage is away: then it lies there, in nobody's way."""
    with suppress(Unavailable):
        storage.delete([upload_key(upload.id, upload.format)])
