"""Files on their way from a request into storage: measured as they come, then noted and stored."""

import hashlib
from datetime import datetime
from typing import BinaryIO
from uuid import UUID

from api.deps import AppState
from common import uploads
from common.db import new_id, transaction
from common.storage import MEDIA_TYPES as PICTURES
from common.storage import upload_key
from common.uploads import Upload

MEDIA_TYPES = {
    **PICTURES,
    "jsonl": "application/jsonl",
    "txt": "text/plain; charset=utf-8",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


class HashingFile:
    """What has come of a file lies in another one, a temporary one of its owner's."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self._digest = hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.bytes += len(block)
        self._digest.update(block)
        return self.file.write(block)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def save(
    farm: AppState,
    tenant_id: UUID,
    spool: HashingFile,
    format: str,
    width: int | None = None,
    height: int | None = None,
    encoding: str | None = None,
) -> tuple[Upload, datetime]:
    """Note a whole file, then put it into storage; when it was noted. Raises Unavailable."""
    upload = Upload(new_id(), format, spool.bytes, spool.sha256, width, height, encoding)
    with transaction(farm.engine) as connection:
        noted_at = uploads.record(connection, tenant_id, upload)
    spool.file.seek(0)
    farm.storage.put_file(upload_key(upload.id, format), spool.file, MEDIA_TYPES[format])
    return upload, noted_at
