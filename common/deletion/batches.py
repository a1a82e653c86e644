"""The rows of deleted batches: jobs and images step by step, then what counts them, then the batch itself.

    hide ──► settled and ended, as any cancelled batch ──► step, step, … ──► gone

A step is one transaction of about STEP_IMAGES images. It locks its batch, so several control workers delete several
batches, and any of them can end at any moment: the next step finds what is left. The last jobs go first, so that a list
of the newest jobs soon has nothing to skip.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, text

from common.batches import retries
from common.datasets import lifecycle as datasets
from common.deletion import rows, sentence
from common.queue.lanes import EXACT, archive

STEP_IMAGES = 1000


def hide(connection: Connection, batch_ids: Sequence[UUID]) -> None:
    """Mark batches as deleted: from the COMMIT on nobody sees them, nor their jobs and images.

    A retry of one stays, with the jobs that it has. A dataset that is still written from one fails.
    """
    ids = list(batch_ids)
    connection.execute(HIDE, {"batches": ids})
    retries.stop_expanding(connection, ids)
    datasets.fail_of_batches(connection, ids, "batch_deleted", sentence("batch_deleted"))
    rows.mark_stale(connection, set(ids))


def pictures(connection: Connection, batch_id: UUID) -> int:
    """How many pictures a batch has, as its lanes count them."""
    return int(connection.execute(PICTURES, {"batch": batch_id}).scalar() or 0)


def step(connection: Connection) -> int | None:
    """Delete the next rows of a deleted batch that has ended; how many jobs. None when there is none to work on."""
    batch = connection.execute(LOCK_NEXT).first()
    if batch is None:
        return None
    limit = max(1, STEP_IMAGES * batch.jobs // max(batch.images, 1))
    found = list(connection.execute(LOCK_JOBS, {"batch": batch.id, "limit": limit}).scalars())
    if found:
        rows.delete_jobs(connection, found, batch.id if batch.has_tombstone else batch.tenant_id)
    else:
        _delete_rest(connection, batch.id)
    return len(found)


def _delete_rest(connection: Connection, batch_id: UUID) -> None:
    """What counts the jobs, and the batch. The counters are kept in a closed lane, so that charts never decrease."""
    named = {"batch": batch_id}
    for statement in (DETACH_RETRIES, DELETE_SKIPPED_LINES, ARCHIVE_LANES, DELETE_LANES, DELETE_BATCH):
        connection.execute(statement, named)


# Mark batches. One that was a retry is none any more: its parent may get another one.
HIDE = text("""
    UPDATE batches SET deleted_at = now(), parent_id = NULL WHERE id = ANY(:batches) AND deleted_at IS NULL
""")

# Count the pictures of a batch.
PICTURES = text(f"""
    SELECT sum(stored - deleted_stored) FROM {EXACT} AS lanes WHERE batch_id = :batch
""")

# Lock a deleted batch all of whose images have ended; none that another control worker has.
LOCK_NEXT = text("""
    SELECT id, tenant_id, jobs, images,
           EXISTS (SELECT FROM tombstones WHERE tombstones.id = batches.id) AS has_tombstone
    FROM batches WHERE deleted_at IS NOT NULL AND finished_at IS NOT NULL
    ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")

# Lock the last jobs of a batch.
LOCK_JOBS = text("""
    SELECT id FROM jobs WHERE id = ANY(ARRAY(
        SELECT id FROM jobs WHERE batch_id = :batch ORDER BY position DESC LIMIT :limit)) ORDER BY id FOR UPDATE
""")

# Take the parent from the retries of a batch.
DETACH_RETRIES = text("UPDATE batches SET parent_id = NULL WHERE parent_id = :batch")

# Delete the notes about the lines of its file.
DELETE_SKIPPED_LINES = text("DELETE FROM skipped_lines WHERE batch_id = :batch")

# Add the counters of its lanes to those of a closed lane of their tenant, tier and model.
ARCHIVE_LANES = text(archive("(SELECT * FROM lanes WHERE batch_id = :batch) AS deleted"))

# Delete its lanes.
DELETE_LANES = text("DELETE FROM lanes WHERE batch_id = :batch")

# Delete the batch.
DELETE_BATCH = text("DELETE FROM batches WHERE id = :batch")
