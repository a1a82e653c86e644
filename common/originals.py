"""The pictures that a recipe can start from: a tenant's uploads, and its images that were stored. Reads rows only.

A picture that the safety checker refused was never stored, so nothing can start from it.
"""

from uuid import UUID

from sqlalchemy import Connection, text

from common.recipes.img2img import InputImage
from common.storage import upload_key
from common.uploads import PICTURE


def find_image(connection: Connection, tenant_id: UUID, picture: UUID) -> InputImage | None:
    """The upload or image of this id, if it is a picture of this tenant's. An upload is kept longer for it."""
    row = connection.execute(FIND, {"picture": picture, "tenant": tenant_id}).first()
    if row is None:
        return None
    key = row.key or upload_key(row.id, PICTURE)
    return InputImage(id=row.id, sha256=row.sha256, key=key, width=row.width, height=row.height)


# Noted once an hour. An upload that is about to be deleted is waited for, and then not found.
FIND = text(f"""
    WITH used AS (
        UPDATE uploads SET used_at = now()
        WHERE id = :picture AND tenant_id = :tenant AND used_at < now() - interval '1 hour'
        RETURNING uploads.*),
    upload AS (
        SELECT * FROM used UNION ALL
        SELECT * FROM uploads
        WHERE id = :picture AND tenant_id = :tenant AND used_at >= now() - interval '1 hour')
    SELECT id, sha256, NULL AS key, width, height FROM upload WHERE format = '{PICTURE}'
    UNION ALL
    SELECT images.id, images.sha256, images.key,
        cast(jobs.recipe ->> 'width' AS int), cast(jobs.recipe ->> 'height' AS int)
    FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE images.id = :picture AND jobs.tenant_id = :tenant AND images.state = 'stored'
""")
