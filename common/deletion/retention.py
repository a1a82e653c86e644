"""Retention: how long a tenant keeps pictures and rows. What is older is deleted, without a tombstone.

    keep_pictures_days    after it was stored, a picture goes; its image stays and says so
    keep_rows_days        after they have ended, jobs, batches and datasets go, with all that they contain

Null is for good. One control worker at a time works on it. A lane remembers up to which moment its pictures are gone,
so a step reads no image twice.
"""

from uuid import UUID

from sqlalchemy import Connection, text

from common.db import id_of_time
from common.deletion import batches, objects, rows
from common.deletion.objects import DeletedObject
from common.storage import dataset_key

STEP_PICTURES = 1000
STEP_JOBS = 250
STEP_BATCHES = 20
BEHIND_S = 600  # by so much later than its day a picture may go
LOCK = 1717  # of `pg_try_advisory_xact_lock`


def delete_pictures(connection: Connection) -> int:
    """Delete the next pictures that are older than their tenant keeps them; how many steps of a lane were done."""
    if not connection.execute(TRY_LOCK, {"lock": LOCK}).scalar():
        return 0
    lane = connection.execute(NEXT_LANE, {"behind": BEHIND_S}).first()
    if lane is None:
        return 0
    page = {"lane": lane.id, "since": lane.pictures_kept_from, "until": lane.until, "limit": STEP_PICTURES}
    found = connection.execute(OLD_PICTURES, page).all()
    connection.execute(MARK_DELETED, {"images": [image.id for image in found]})
    objects.add(connection, [DeletedObject(image.key) for image in found], lane.tenant_id)
    rows.mark_stale(connection, {lane.batch_id} if found and lane.batch_id else set())
    reached = found[-1].finished_at if len(found) == STEP_PICTURES else lane.until
    connection.execute(REMEMBER, {"lane": lane.id, "reached": reached})
    return 1


def delete_rows(connection: Connection) -> int:
    """Delete the next rows that are older than their tenant keeps them; how many jobs, batches and datasets."""
    if not connection.execute(TRY_LOCK, {"lock": LOCK}).scalar():
        return 0
    done = 0
    for tenant in connection.execute(TENANTS).all():
        done += _delete_rows(connection, tenant.id, tenant.until, tenant.epoch)
    return done


def _delete_rows(connection: Connection, tenant_id: UUID, until: object, epoch: float) -> int:
    old = {"tenant": tenant_id, "until": until}
    old_batches = list(connection.execute(OLD_BATCHES, old | {"limit": STEP_BATCHES}).scalars())
    batches.hide(connection, old_batches)
    old_jobs = list(connection.execute(OLD_JOBS, old | {"before": id_of_time(epoch), "limit": STEP_JOBS}).scalars())
    if old_jobs:
        rows.delete_jobs(connection, old_jobs, tenant_id)
    old_datasets = list(connection.execute(DELETE_OLD_DATASETS, old).scalars())
    objects.add(connection, [DeletedObject(dataset_key(dataset_id, "")) for dataset_id in old_datasets], tenant_id)
    return len(old_batches) + len(old_jobs) + len(old_datasets)


# Become the only one that works on it.
TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock)")

# Find a lane that may have pictures that are too old.
NEXT_LANE = text("""
    SELECT lanes.id, lanes.tenant_id, lanes.batch_id, lanes.pictures_kept_from, old.until
    FROM tenants
    CROSS JOIN LATERAL (SELECT now() - make_interval(days => tenants.keep_pictures_days) AS until) AS old
    JOIN lanes ON lanes.tenant_id = tenants.id AND lanes.stored > lanes.deleted_stored
    WHERE tenants.keep_pictures_days IS NOT NULL
        AND coalesce(lanes.pictures_kept_from, '-infinity') < old.until - make_interval(secs => :behind)
    ORDER BY lanes.pictures_kept_from NULLS FIRST LIMIT 1
""")

# Lock the oldest pictures of a lane.
OLD_PICTURES = text("""
    SELECT id, key, finished_at FROM images
    WHERE lane_id = :lane AND state = 'stored' AND finished_at < :until AND picture_deleted_at IS NULL
        AND finished_at >= coalesce(cast(:since AS timestamptz), '-infinity')
    ORDER BY finished_at, id LIMIT :limit FOR NO KEY UPDATE
""")

# Mark images whose pictures are deleted.
MARK_DELETED = text("UPDATE images SET picture_deleted_at = now() WHERE id = ANY(:images)")

# Remember up to when the pictures of a lane are deleted.
REMEMBER = text("UPDATE lanes SET pictures_kept_from = :reached WHERE id = :lane")

# Find the tenants that do not keep rows for good, and from when on they keep them.
TENANTS = text("""
    SELECT id, now() - make_interval(days => keep_rows_days) AS until,
           extract(epoch FROM now() - make_interval(days => keep_rows_days))::float AS epoch
    FROM tenants WHERE keep_rows_days IS NOT NULL ORDER BY id
""")

# Lock the batches of a tenant that ended too long ago.
OLD_BATCHES = text("""
    SELECT id FROM batches WHERE tenant_id = :tenant AND finished_at < :until AND deleted_at IS NULL
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")

# Lock the jobs of a tenant and of no batch that ended too long ago.
OLD_JOBS = text("""
    SELECT id FROM jobs
    WHERE tenant_id = :tenant AND id < :before AND batch_id IS NULL AND finished_at < :until
    ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
""")

# Delete the datasets of a tenant that ended too long ago.
DELETE_OLD_DATASETS = text("DELETE FROM datasets WHERE tenant_id = :tenant AND finished_at < :until RETURNING id")
