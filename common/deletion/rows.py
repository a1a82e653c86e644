"""The rows of jobs and images: deleted with all that names them, and their bytes recorded for deletion.

The caller has locked the jobs, and none of the images is open any more. What a lease may still store of them is
recorded too, for the row from which `common.queue.orphans` would compute its key is gone then. The counters of lanes go
on counting what has ended; `deleted_…` says what of it has no row. Lock order: as everywhere, images before lanes.
`tombstone_id`: see `objects.add`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.datasets.lifecycle import TAKES_FROM
from common.deletion import objects
from common.deletion.objects import DeletedObject
from common.enums import ImageState
from common.storage import image_key


def delete_jobs(connection: Connection, job_ids: Sequence[UUID], tombstone_id: UUID) -> int:
    """Delete these jobs and their images; how many pictures they had. Their retries stay, without a parent."""
    found = connection.execute(IMAGES_OF_JOBS, {"jobs": list(job_ids)}).all()
    pictures = _delete(connection, found, tombstone_id)
    connection.execute(DETACH_RETRIES, {"jobs": list(job_ids)})
    connection.execute(DELETE_JOBS, {"jobs": list(job_ids)})
    return pictures


def delete_images(connection: Connection, image_ids: Sequence[UUID], tombstone_id: UUID) -> int:
    """Delete these images; how many pictures they had. Their jobs stay."""
    return _delete(connection, connection.execute(IMAGES, {"images": list(image_ids)}).all(), tombstone_id)


def mark_stale(connection: Connection, batch_ids: set[UUID]) -> None:
    """Mark the datasets that may show a picture of these batches: they have begun to be written."""
    if batch_ids:
        connection.execute(MARK_STALE, {"batches": list(batch_ids)})


def _delete(connection: Connection, found: Sequence[Row[Any]], tombstone_id: UUID) -> int:
    image_ids = [image.id for image in found]
    keys = {image.key: DeletedObject(image.key, is_picture=True) for image in found if image.has_picture}
    pictures = len(keys)
    by_id = {image.id: image for image in found}
    for held in connection.execute(HELD, {"images": image_ids}):
        image = by_id[held.image_id]
        key = image_key(image.job_id, image._mapping["index"], held.lease_id, image.format)
        keys.setdefault(key, DeletedObject(key, lease_id=held.lease_id))
    objects.add(connection, keys.values(), tombstone_id)
    mark_stale(connection, {image.batch_id for image in found if image.has_picture and image.batch_id})
    connection.execute(DELETE_IMAGES, {"images": image_ids})
    _count(connection, found)
    return pictures


def _count(connection: Connection, found: Sequence[Row[Any]]) -> None:
    counted = Counter((image.lane_id, ImageState(image.state)) for image in found)
    lanes = sorted({lane_id for lane_id, _ in counted})
    by_state = {state.value: [counted[lane_id, state] for lane_id in lanes] for state in ENDED}
    connection.execute(LOCK_LANES, {"lanes": lanes})
    connection.execute(COUNT_DELETED, {"lanes": lanes, **by_state})


ENDED = (ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED, ImageState.CANCELLED)

FOUND = """
    SELECT images.id, images.job_id, images.lane_id, images.index, images.state, images.key, jobs.batch_id,
           images.state = 'stored' AND images.picture_deleted_at IS NULL AS has_picture,
           jobs.recipe ->> 'format' AS format
    FROM images JOIN jobs ON jobs.id = images.job_id
"""

# Read the images of jobs.
IMAGES_OF_JOBS = text(f"{FOUND} WHERE images.job_id = ANY(:jobs)")

# Read images.
IMAGES = text(f"{FOUND} WHERE images.id = ANY(:images)")

# Find the leases that may have stored bytes of these images, or may store them yet, under keys that no row names.
HELD = text("""
    SELECT leases.id AS lease_id, held.id AS image_id
    FROM (SELECT id, image_ids FROM leases WHERE ended_at IS NULL AND started_at IS NOT NULL
          UNION ALL
          SELECT id, image_ids FROM leases WHERE needs_cleanup AND ended_at IS NOT NULL) AS leases
    CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
    WHERE held.id = ANY(:images)
""")

# Mark the datasets of these batches, or of batches whose retries these are.
MARK_STALE = text(
    f"UPDATE datasets SET stale_at = now() WHERE stale_at IS NULL AND begun_at IS NOT NULL AND {TAKES_FROM}"
)

# Delete images.
DELETE_IMAGES = text("DELETE FROM images WHERE id = ANY(:images)")

# Take the parent from the retries of jobs.
DETACH_RETRIES = text("""
    UPDATE jobs SET parent_id = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE parent_id = ANY(:jobs) ORDER BY id FOR NO KEY UPDATE))
""")

# Delete jobs.
DELETE_JOBS = text("DELETE FROM jobs WHERE id = ANY(:jobs)")

# Lock lanes by id.
LOCK_LANES = text("SELECT FROM lanes WHERE id = ANY(cast(:lanes AS bigint[])) ORDER BY id FOR NO KEY UPDATE")

# Count the deleted images of lanes by state.
COUNT_DELETED = text("""
    UPDATE lanes SET deleted_stored = deleted_stored + gone.stored, deleted_flagged = deleted_flagged + gone.flagged,
        deleted_failed = deleted_failed + gone.failed, deleted_cancelled = deleted_cancelled + gone.cancelled
    FROM unnest(cast(:lanes AS bigint[]), cast(:stored AS int[]), cast(:flagged AS int[]), cast(:failed AS int[]),
                cast(:cancelled AS int[])) AS gone(id, stored, flagged, failed, cancelled)
    WHERE lanes.id = gone.id
""")
