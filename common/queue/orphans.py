"""Orphans: the keys that dead leases may have written and that no image names. Computed, never listed.

And the reverse: stored images whose bytes are gone. Such an image stays `stored`, for that it was, and lanes, jobs and
usage count it so; its error says what became of it.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, text

from common.failures import rests
from common.storage import image_key


def orphaned_keys(connection: Connection, grace_s: float, limit: int = 100) -> dict[UUID, list[str]]:
    """By lease that ended more than `grace_s` seconds ago: the keys it may have written that no image names."""
    found: dict[UUID, list[str]] = {}
    for row in connection.execute(ORPHANED_KEYS, {"grace": grace_s, "limit": limit}):
        keys = found.setdefault(row.lease_id, [])
        if row.job_id is not None:
            keys.append(image_key(row.job_id, row._mapping["index"], row.lease_id, row.format))
    return found


def mark_cleaned(connection: Connection, lease_ids: Sequence[UUID]) -> None:
    """Record that the orphaned keys of these leases were deleted."""
    connection.execute(MARK_CLEANED, {"leases": list(lease_ids)})


def mark_gone(connection: Connection, image_id: UUID, key: str, code: str, message: str) -> bool:
    """Give a stored image the error that its bytes under this key are gone; whether it has that key still."""
    marked = {"image": image_id, "key": key, "code": code, "message": message}
    return connection.execute(MARK_GONE, marked).rowcount > 0


def mark_present(connection: Connection, image_id: UUID) -> None:
    """Take that error away again: its bytes were restored."""
    connection.execute(MARK_PRESENT, {"image": image_id})


# Finds ended leases that need cleanup, with their images that they have not stored visibly.
ORPHANED_KEYS = text(f"""
    SELECT lease.id AS lease_id, images.job_id, images.index, jobs.recipe ->> 'format' AS format
    FROM (SELECT id, image_ids FROM leases
          WHERE needs_cleanup AND ended_at < now() - make_interval(secs => :grace)
              AND NOT {rests("delete_leftovers", "leases.id")}
          ORDER BY ended_at LIMIT :limit) AS lease
    LEFT JOIN images ON images.id = ANY(lease.image_ids)
        AND NOT (images.state = 'stored' AND images.lease_id = lease.id)
    LEFT JOIN jobs ON jobs.id = images.job_id
""")

# Marks leases as cleaned up.
MARK_CLEANED = text("UPDATE leases SET needs_cleanup = false WHERE id = ANY(:leases) AND ended_at IS NOT NULL")

# Gives a stored image an error.
MARK_GONE = text("""
    UPDATE images SET error_code = :code, error_message = :message
    WHERE id = :image AND state = 'stored' AND key = :key
""")

# Takes the error of a stored image away.
MARK_PRESENT = text("""
    UPDATE images SET error_code = NULL, error_message = NULL WHERE id = :image AND state = 'stored'
""")
