"""The bytes to delete: written in the transaction that deletes what named them, worked off while storage is there.

So no crash and no outage of storage leaves bytes that nobody knows. Images may share an object (`common.queue.reuse`):
the last of them takes its bytes along. Sends nothing to storage: control workers do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

POSTPONED_S = 60.0  # after storage refused to delete an object


@dataclass(frozen=True)
class DeletedObject:
    """A key; one that ends with / stands for all objects below it.

    `lease_id`: the lease that may store it yet. `is_picture`: counted in the tombstone. `again_after_s`: it is deleted
    once more then, for what was just writing.
    """

    key: str
    is_picture: bool = False
    lease_id: UUID | None = None
    again_after_s: float | None = None


def add(connection: Connection, objects: Iterable[DeletedObject], tombstone_id: UUID) -> None:
    """Record that the bytes under these keys are to be deleted. `tombstone_id`: of the deletion that they belong to,
    or the tenant whose they were, where nobody named a thing.
    """
    rows = {row.key: row for row in objects}.values()  # images may share one
    if not rows:
        return
    columns = {
        "keys": [row.key for row in rows],
        "pictures": [row.is_picture for row in rows],
        "leases": [row.lease_id for row in rows],
        "again": [row.again_after_s for row in rows],
    }
    connection.execute(ADD, columns | {"tombstone": tombstone_id})


def take_due(connection: Connection, grace_s: float, limit: int) -> list[str]:
    """Lock the next keys whose bytes may be deleted, none that another control worker has.

    What a lease may store is due `grace_s` after that has ended. `deleted` must follow in the same transaction.
    """
    return list(connection.execute(TAKE_DUE, {"grace": grace_s, "limit": limit}).scalars())


def deleted(connection: Connection, keys: Sequence[str]) -> None:
    """The bytes under these keys are gone."""
    connection.execute(DELETED, {"keys": list(keys)})
    connection.execute(ONCE_MORE, {"keys": list(keys)})


def postpone(connection: Connection, keys: Sequence[str]) -> None:
    """Leave these keys alone for a while: storage did not delete them."""
    connection.execute(POSTPONE, {"keys": list(keys), "seconds": POSTPONED_S})


def are_many(connection: Connection, most: int) -> bool:
    """Whether more than so many keys are there."""
    return bool(connection.execute(ARE_MANY, {"most": most}).scalar())


# Insert keys. A key that is there already stays as it is, and locked: whoever works it off waits for this transaction,
# and then sees that no image names it any more. In order, so that two deletions cannot deadlock.
ADD = text("""
    INSERT INTO objects_to_delete (key, is_picture, lease_id, again_at, tombstone_id)
    SELECT key, is_picture, lease_id, now() + make_interval(secs => again), :tombstone
    FROM unnest(cast(:keys AS text[]), cast(:pictures AS boolean[]), cast(:leases AS uuid[]),
                cast(:again AS double precision[])) AS object(key, is_picture, lease_id, again)
    ORDER BY key
    ON CONFLICT (key) DO UPDATE SET key = excluded.key
""")

# Lock the next keys that are due.
TAKE_DUE = text("""
    SELECT key FROM objects_to_delete
    WHERE due_at <= now() AND (lease_id IS NULL OR NOT EXISTS (
        SELECT FROM leases WHERE leases.id = lease_id
            AND (ended_at IS NULL OR ended_at > now() - make_interval(secs => :grace))))
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")

# Forget keys that need not be deleted again, and count their pictures in the tombstones.
DELETED = text("""
    WITH gone AS (
        DELETE FROM objects_to_delete WHERE key = ANY(:keys) AND again_at IS NULL RETURNING tombstone_id, is_picture),
    tally AS (
        SELECT tombstone_id, count(*) FILTER (WHERE is_picture) AS pictures FROM gone
        WHERE tombstone_id IS NOT NULL GROUP BY tombstone_id)
    UPDATE tombstones SET pictures_left = greatest(pictures_left - tally.pictures, 0)
    FROM tally WHERE tombstones.id = tally.tombstone_id
""")

# The others are due once more.
ONCE_MORE = text("""
    UPDATE objects_to_delete SET due_at = again_at, again_at = NULL WHERE key = ANY(:keys) AND again_at IS NOT NULL
""")

# Make keys due later.
POSTPONE = text("""
    UPDATE objects_to_delete SET due_at = now() + make_interval(secs => :seconds) WHERE key = ANY(:keys)
""")

# Whether more keys than that are there.
ARE_MANY = text("SELECT count(*) > :most FROM (SELECT FROM objects_to_delete LIMIT :most + 1) AS first")
