"""Uploads: prompt files for batches, pictures for recipes to start from. The rows; their bytes are in storage.

A recipe may also start from a stored image of its tenant. An image that the safety checker flagged was never stored. An
upload is kept while a batch refers to it, and for some days after a recipe last did. Knows no file format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from common.failures import rests
from common.recipes.img2img import InputImage
from common.schema import shown
from common.storage import upload_key

PICTURE = "png"  # the format of pictures; the others are of prompt files


@dataclass(frozen=True)
class Upload:
    """A file in storage. `format`: png (with `width`, `height`), or of prompts, see `common.prompt_files.reader`.

    `encoding` is that of text when it was uploaded.
    """

    id: UUID
    format: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    encoding: str | None = None


def record(connection: Connection, tenant_id: UUID, upload: Upload) -> datetime:
    """Insert a file before it is stored, so that every object has a row; the time of the row."""
    created_at: datetime = connection.execute(INSERT_UPLOAD, vars(upload) | {"tenant": tenant_id}).scalar_one()
    return created_at


def forget(connection: Connection, upload_id: UUID) -> None:
    """Delete the row of a file that could not be stored."""
    connection.execute(DELETE_UPLOAD, {"upload": upload_id})


def forget_unused(connection: Connection, upload_id: UUID) -> bool:
    """Delete the row of an upload whose bytes are gone; False if a batch refers to it."""
    return connection.execute(DELETE_UNUSED, {"upload": upload_id}).rowcount > 0


def find_prompts(connection: Connection, tenant_id: UUID, upload_id: UUID) -> Upload | None:
    """A prompt file of the tenant."""
    row = connection.execute(FIND_PROMPTS, {"tenant": tenant_id, "upload": upload_id}).first()
    return Upload(row.id, row.format, row.bytes, row.sha256, encoding=row.encoding) if row else None


def find_image(connection: Connection, tenant_id: UUID, image_id: UUID) -> InputImage | None:
    """The picture or stored image of the tenant. A picture is kept longer for it."""
    row = connection.execute(FIND_IMAGE, {"image": image_id, "tenant": tenant_id}).first()
    if row is None:
        return None
    key = row.key or upload_key(row.id, PICTURE)
    return InputImage(id=row.id, sha256=row.sha256, key=key, width=row.width, height=row.height)


def unused(connection: Connection, days: float, limit: int = 20) -> list[UUID]:
    """Uploads that nothing has referred to for so many days."""
    return list(connection.execute(UNUSED, {"days": days, "limit": limit}).scalars())


def take_unused(connection: Connection, upload_ids: Sequence[UUID], days: float) -> list[tuple[UUID, str]]:
    """Delete the rows of those of these uploads that nothing has referred to for so many days; their ids and formats.

    Delete their bytes before the COMMIT: a transaction that reads one of them waits, and then does not find it.
    """
    rows = connection.execute(TAKE_UNUSED, {"uploads": list(upload_ids), "days": days}).all()
    return [(row.id, row.format) for row in rows]


# Inserts an upload.
INSERT_UPLOAD = text("""
    INSERT INTO uploads (id, tenant_id, format, bytes, sha256, width, height, encoding)
    VALUES (:id, :tenant, :format, :bytes, :sha256, :width, :height, :encoding)
    RETURNING created_at
""")

# Deletes an upload.
DELETE_UPLOAD = text("DELETE FROM uploads WHERE id = :upload")

# Deletes an upload that no batch refers to.
DELETE_UNUSED = text("""
    DELETE FROM uploads
    WHERE id = :upload AND NOT EXISTS (SELECT FROM batches WHERE batches.upload_id = uploads.id)
""")

# Finds a prompt file.
FIND_PROMPTS = text(f"""
    SELECT id, format, bytes, sha256, encoding FROM uploads
    WHERE id = :upload AND tenant_id = :tenant AND format <> '{PICTURE}'
""")

# Finds a picture, or a stored image; updates `used_at` of a picture once an hour. Waits for a deletion under way.
FIND_IMAGE = text(f"""
    WITH used AS (
        UPDATE uploads SET used_at = now()
        WHERE id = :image AND tenant_id = :tenant AND used_at < now() - interval '1 hour'
        RETURNING uploads.*),
    upload AS (
        SELECT * FROM used UNION ALL
        SELECT * FROM uploads
        WHERE id = :image AND tenant_id = :tenant AND used_at >= now() - interval '1 hour')
    SELECT id, sha256, NULL AS key, width, height FROM upload WHERE format = '{PICTURE}'
    UNION ALL
    SELECT images.id, images.sha256, images.key,
        cast(jobs.recipe ->> 'width' AS int), cast(jobs.recipe ->> 'height' AS int)
    FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE images.id = :image AND jobs.tenant_id = :tenant AND images.state = 'stored'
        AND images.picture_deleted_at IS NULL AND {shown()}
""")

# Whether an upload is old and no batch refers to it.
IS_UNUSED = """
    used_at < now() - make_interval(secs => 86400 * cast(:days AS double precision))
    AND NOT EXISTS (SELECT FROM batches WHERE batches.upload_id = uploads.id)
"""

# Finds unused uploads.
UNUSED = text(f"""
    SELECT id FROM uploads WHERE {IS_UNUSED} AND NOT {rests("delete_uploads", "uploads.id")} ORDER BY id LIMIT :limit
""")

# Deletes those of these uploads that are unused.
TAKE_UNUSED = text(f"""
    DELETE FROM uploads WHERE id = ANY(ARRAY(
        SELECT id FROM uploads WHERE id = ANY(:uploads) AND {IS_UNUSED} ORDER BY id FOR UPDATE SKIP LOCKED))
    RETURNING id, format
""")
