"""Orphans: the keys that dead leases may have written and that no image names. Computed, never listed."""

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
