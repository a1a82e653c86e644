"""Uploads: files of prompts for batches, and pictures for recipes to start from. Their rows; the bytes are in storage.

An upload is kept while a batch refers to it, and for a while after a recipe last asked for it. Knows neither what a
file says nor how a picture is drawn.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

PICTURE = "png"  # the format that pictures are kept in; any other is one of a file of prompts


@dataclass(frozen=True)
class Upload:
    """A file in storage. `format` is jsonl, txt, parquet, or csv in this encoding; or png, of a picture's pixels."""

    id: UUID
    format: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    encoding: str | None = None


def record(connection: Connection, tenant_id: UUID, upload: Upload) -> datetime:
    """Note a file before it is put into storage, so that nothing lies there that no row knows; when that was."""
    noted: datetime = connection.execute(INSERT_UPLOAD, vars(upload) | {"tenant": tenant_id}).scalar_one()
    return noted


def find_prompts(connection: Connection, tenant_id: UUID, upload_id: UUID) -> Upload | None:
    """A file of prompts of the tenant's."""
    row = connection.execute(FIND_PROMPTS, {"tenant": tenant_id, "upload": upload_id}).first()
    return Upload(row.id, row.format, row.bytes, row.sha256, encoding=row.encoding) if row else None


def take_unused(connection: Connection, days: float, limit: int = 20) -> list[tuple[UUID, str]]:
    """Delete the rows of uploads that nobody has asked for in so many days; which, with their formats.

    Their bytes are to be deleted before the COMMIT: whoever asks for one of them meanwhile waits, and learns the truth.
    """
    rows = connection.execute(TAKE_UNUSED, {"days": days, "limit": limit}).all()
    return [(row.id, row.format) for row in rows]


INSERT_UPLOAD = text("""
    INSERT INTO uploads (id, tenant_id, format, bytes, sha256, width, height, encoding)
    VALUES (:id, :tenant, :format, :bytes, :sha256, :width, :height, :encoding)
    RETURNING created_at
""")

FIND_PROMPTS = text(f"""
    SELECT id, format, bytes, sha256, encoding FROM uploads
    WHERE id = :upload AND tenant_id = :tenant AND format <> '{PICTURE}'
""")

TAKE_UNUSED = text("""
    DELETE FROM uploads WHERE id = ANY(ARRAY(
        SELECT id FROM uploads
        WHERE used_at < now() - make_interval(secs => 86400 * cast(:days AS double precision))
            AND NOT EXISTS (SELECT FROM batches WHERE batches.upload_id = uploads.id)
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING id, format
""")
