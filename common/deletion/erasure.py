"""Erasure: a suspended tenant loses all that it has, but the totals of its usage and its tombstones.

    tenants.erase ──► step, step, … ──► nothing is left ──► the bucket is listed ──► finished

The request marks the tenant and revokes its keys; control workers do the rest. Each step is a transaction of its own,
of one kind of rows, and any of them can end at any moment: the next step finds what is left. `ownership` says which
rows that is; the bytes go as those of every deletion do, and the rows of its batches too (`batches`).

A request that was on its way when the tenant was suspended may still store something. So an erased tenant is looked at
for a day after the end, and the end is taken back where something has come. Sends nothing to storage.
"""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts import keys, tenants
from common.batches import lifecycle
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.deletion import batches, objects, ownership, rows
from common.deletion.objects import DeletedObject
from common.queue import jobs
from common.queue.lanes import archive
from common.storage import dataset_key, upload_key

STEP_BATCHES = 20
STEP_JOBS = 250
STEP_ROWS = 1000
STEP_KEYS = 5  # for each of them Postgres reads all of the audit
UPLOADING_S = 300  # an upload is stored within so long after its row
LOCK = 1718  # of `pg_try_advisory_xact_lock`, with the tenant


def under_way(connection: Connection) -> list[UUID]:
    """The tenants of which something may have to be deleted."""
    return list(connection.execute(UNDER_WAY).scalars())


def step(connection: Connection, tenant_id: UUID) -> int:
    """Delete the next rows of an erased tenant; how many of the kind whose turn it was. 0: none can go now.

    One control worker at a time works on a tenant; this one leaves it to another that does.
    """
    named = {"tenant": tenant_id}
    if not connection.execute(TRY_LOCK, named | {"lock": LOCK}).scalar():
        return 0
    tenants.suspend(connection, tenant_id)  # an older API may have resumed it, or made a key
    keys.revoke_all(connection, tenant_id)
    for delete in STEPS:
        if done := delete(connection, tenant_id):
            connection.execute(TAKE_BACK_END, named)
            return done
    return 0


def emptied(connection: Connection) -> list[UUID]:
    """The tenants of which nothing is left, but that the bucket has not been listed since."""
    unfinished = connection.execute(UNFINISHED).scalars().all()
    return [tenant_id for tenant_id in unfinished if ownership.has_nothing(connection, tenant_id)]


def unnamed(connection: Connection, owners: Mapping[str, str]) -> list[str]:
    """Which of these keys no row names. `owners`: by key, the id of a job, upload or dataset in it.

    An object whose row is there is another tenant's, for the erased one has none; so is one that waits to be deleted.
    """
    listed = {"keys": list(owners), "owners": list(owners.values())}
    return list(connection.execute(UNNAMED, listed).scalars())


def finish(connection: Connection, tenant_id: UUID, listing: Mapping[str, Any]) -> bool:
    """Record that nothing is left of a tenant, and what the bucket has; False if something has come meanwhile."""
    if not ownership.has_nothing(connection, tenant_id):
        return False
    return connection.execute(FINISH, {"tenant": tenant_id, "listing": json.dumps(listing)}).rowcount > 0


# The steps. Each deletes some rows of one kind, and returns how many.


def _hide_batches(connection: Connection, tenant_id: UUID) -> int:
    found = connection.execute(LOCK_BATCHES, {"tenant": tenant_id, "limit": STEP_BATCHES}).all()
    for batch in found:
        if batch.finished_at is None:
            lifecycle.close(connection, batch.id, tenant_id)
    if found:
        batches.hide(connection, [batch.id for batch in found])
    return len(found)


def _delete_datasets(connection: Connection, tenant_id: UUID) -> int:
    found = connection.execute(DELETE_DATASETS, {"tenant": tenant_id, "limit": STEP_ROWS}).all()
    written = {dataset.id: None if dataset.finished_at else EXPORT_SILENCE_S for dataset in found}
    keys = [DeletedObject(dataset_key(one, ""), again_after_s=again) for one, again in written.items()]
    objects.add(connection, keys, tenant_id)
    return len(found)


def _delete_jobs(connection: Connection, tenant_id: UUID) -> int:
    found = list(connection.execute(LOCK_JOBS, {"tenant": tenant_id, "limit": STEP_JOBS}).scalars())
    if found:
        jobs.cancel_locked(connection, found)
        rows.delete_jobs(connection, found, tenant_id)
    return len(found)


def _delete_uploads(connection: Connection, tenant_id: UUID) -> int:
    found = connection.execute(DELETE_UPLOADS, {"tenant": tenant_id, "limit": STEP_ROWS}).all()
    keys = [
        DeletedObject(
            upload_key(upload.id, upload.format),
            again_after_s=UPLOADING_S - upload.age_s if upload.age_s < UPLOADING_S else None,
        )
        for upload in found
    ]
    objects.add(connection, keys, tenant_id)
    return len(found)


def _delete_plain_rows(connection: Connection, tenant_id: UUID) -> int:
    found = {"tenant": tenant_id, "limit": STEP_ROWS}
    return sum(connection.execute(statement, found).rowcount for statement in DELETE_PLAIN_ROWS)


def _archive_lanes(connection: Connection, tenant_id: UUID) -> int:
    return connection.execute(ARCHIVE_LANES, {"tenant": tenant_id, "limit": STEP_ROWS}).rowcount


def _delete_keys(connection: Connection, tenant_id: UUID) -> int:
    """Those that nothing names any more; the others lose their names."""
    named = {"tenant": tenant_id, "limit": STEP_KEYS}
    return connection.execute(DELETE_KEYS, named).rowcount or connection.execute(BLANK_KEYS, named).rowcount


STEPS = (
    _hide_batches,
    _delete_datasets,
    _delete_jobs,
    _delete_uploads,
    _delete_plain_rows,
    _archive_lanes,
    _delete_keys,
)

PLAIN = ("idempotency_keys", "licence_acceptances", "ended_sessions", "image_days", "stored_bytes", "audit")


def _delete(table: str) -> str:
    found = f"SELECT {table}.ctid FROM {ownership.ERASED[table]} LIMIT :limit FOR UPDATE SKIP LOCKED"
    return f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({found}))"


# Find the tenants whose erasure has not ended, or has ended within a day.
UNDER_WAY = text("""
    SELECT id FROM tenants
    WHERE erased_at IS NOT NULL AND coalesce(erasure_finished_at > now() - interval '1 day', true) ORDER BY erased_at
""")

# Find the tenants whose erasure has not ended.
UNFINISHED = text("""
    SELECT id FROM tenants WHERE erased_at IS NOT NULL AND erasure_finished_at IS NULL ORDER BY erased_at
""")

# Become the only one that works on a tenant.
TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock, hashtext(cast(:tenant AS text)))")

# Take the end of an erasure back.
TAKE_BACK_END = text("""
    UPDATE tenants SET erasure_finished_at = NULL WHERE id = :tenant AND erasure_finished_at IS NOT NULL
""")

# Lock batches of a tenant that are not deleted.
LOCK_BATCHES = text("""
    SELECT id, finished_at FROM batches WHERE tenant_id = :tenant AND deleted_at IS NULL
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")

# Delete datasets of a tenant.
DELETE_DATASETS = text("""
    DELETE FROM datasets
    WHERE id = ANY(ARRAY(
        SELECT id FROM datasets WHERE tenant_id = :tenant ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING id, finished_at
""")

# Lock jobs of a tenant and of no batch.
LOCK_JOBS = text("""
    SELECT id FROM jobs WHERE tenant_id = :tenant AND batch_id IS NULL
    ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
""")

# Delete uploads of a tenant that no batch was made of.
DELETE_UPLOADS = text("""
    DELETE FROM uploads
    WHERE id = ANY(ARRAY(
        SELECT id FROM uploads
        WHERE tenant_id = :tenant AND NOT EXISTS (SELECT FROM batches WHERE batches.upload_id = uploads.id)
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING id, format, extract(epoch FROM now() - created_at)::float AS age_s
""")

# Delete rows that nothing refers to.
DELETE_PLAIN_ROWS = tuple(text(_delete(table)) for table in PLAIN)

# Delete the lanes of no batch of a tenant without jobs, and add their counters to those of its closed lanes.
ARCHIVE_LANES = text(f"""
    WITH past AS MATERIALIZED (
        SELECT lanes.id FROM {ownership.ERASED["lanes"]} AND batch_id IS NULL AND open = 0
            AND NOT EXISTS (SELECT FROM lane_changes WHERE lane_changes.lane_id = lanes.id)
            AND NOT EXISTS (SELECT FROM jobs WHERE jobs.tenant_id = :tenant)
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED),
    deleted AS (
        DELETE FROM lanes USING past WHERE lanes.id = past.id
        RETURNING tenant_id, tier, model, stored, flagged, failed, cancelled),
    archived AS ({archive("deleted")})
    SELECT id FROM past
""")

# Whether nothing may name a key of a tenant any more that does not yet.
IS_IDLE = """
    NOT EXISTS (SELECT FROM jobs WHERE jobs.tenant_id = :tenant)
    AND NOT EXISTS (SELECT FROM batches WHERE batches.tenant_id = :tenant)
    AND NOT EXISTS (SELECT FROM usage_entries WHERE usage_entries.tenant_id = :tenant)
"""

# Delete the keys of a tenant that nothing names.
DELETE_KEYS = text(f"""
    DELETE FROM api_keys WHERE id = ANY(ARRAY(
        SELECT api_keys.id FROM {ownership.ERASED["api_keys"]} AND {IS_IDLE}
            AND NOT EXISTS (SELECT FROM usage_days WHERE usage_days.tenant_id = :tenant AND key_id = api_keys.id)
            AND NOT EXISTS (SELECT FROM tombstones WHERE tombstones.tenant_id = :tenant AND key_id = api_keys.id)
            AND NOT EXISTS (SELECT FROM audit WHERE audit.tenant_id = :tenant AND key_id = api_keys.id)
            AND NOT EXISTS (SELECT FROM licence_acceptances AS accepted WHERE accepted.key_id = api_keys.id)
            AND NOT EXISTS (SELECT FROM ended_sessions WHERE key_id = api_keys.id)
        ORDER BY api_keys.id LIMIT :limit FOR UPDATE SKIP LOCKED))
""")

# Take the names of the others. The digest of a secret is longer than an id, so none has this one.
BLANK_KEYS = text(f"""
    UPDATE api_keys SET name = id::text, digest = uuid_send(id), scopes = '{{}}', expires_at = NULL
    WHERE id = ANY(ARRAY(
        SELECT api_keys.id FROM {ownership.ERASED["api_keys"]} AND {IS_IDLE}
        ORDER BY api_keys.id LIMIT :limit FOR UPDATE SKIP LOCKED))
""")

# Find the keys that neither a row nor a key to delete names.
UNNAMED = text("""
    SELECT object.key FROM unnest(cast(:keys AS text[]), cast(:owners AS uuid[])) AS object(key, owner)
    WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = object.owner)
        AND NOT EXISTS (SELECT FROM uploads WHERE uploads.id = object.owner)
        AND NOT EXISTS (SELECT FROM datasets WHERE datasets.id = object.owner)
        AND NOT EXISTS (
            SELECT FROM objects_to_delete AS deleted
            WHERE deleted.key IN (object.key, substring(object.key FROM '^[^/]*/[^/]*/')))
""")

# Finish an erasure: of the tenant itself its id is left.
FINISH = text("""
    UPDATE tenants SET name = id::text, weight = 1, limits = '{}', tiers = NULL, keep_pictures_days = NULL,
        keep_rows_days = NULL, erasure_finished_at = now(), erasure_listing = cast(:listing AS jsonb)
    WHERE id = :tenant AND erased_at IS NOT NULL AND erasure_finished_at IS NULL
""")
