"""Which batch a control worker processes next: tenants take turns, however many batches each of them has.

A message only wakes a control worker. A batch that one processes is touched about twice a second; one that was not
touched for IDLE_S, or never, waits.
"""

from uuid import UUID

from sqlalchemy import Connection, text

from common.batches.lifecycle import HAS_WORK
from common.db import CODE

IDLE_S = 1.5


def take(connection: Connection, batch_id: UUID) -> UUID | None:
    """The batch to process on a message for this one: the message may come out of turn. None if no work is left.

    It is touched, so that others take another one.
    """
    taken: UUID | None = connection.execute(TAKE, {"batch": batch_id, "idle": IDLE_S, "code": CODE}).scalar()
    return taken


def another_tenant_waits(connection: Connection, batch_id: UUID) -> bool:
    """Whether a batch of another tenant than this one's waits."""
    return bool(connection.execute(ANOTHER_WAITS, {"batch": batch_id, "idle": IDLE_S, "code": CODE}).scalar())


WAITS = "(touched_at = created_at OR touched_at < now() - make_interval(secs => :idle))"

# Touch the next batch that waits, or the given one: of the tenant that was served least recently, its oldest first.
TAKE = text(f"""
    UPDATE batches SET touched_at = now() WHERE id = (
        SELECT id FROM batches JOIN (
            SELECT tenant_id, max(touched_at) FILTER (WHERE touched_at > created_at) AS served_at
            FROM batches WHERE {HAS_WORK} GROUP BY tenant_id) AS tenants USING (tenant_id)
        WHERE {HAS_WORK} AND ({WAITS} OR id = :batch)
        ORDER BY served_at NULLS FIRST, touched_at, id LIMIT 1 FOR NO KEY UPDATE OF batches SKIP LOCKED)
    RETURNING id
""")

# Whether a batch of another tenant waits.
ANOTHER_WAITS = text(f"""
    SELECT EXISTS (SELECT FROM batches
        WHERE {HAS_WORK} AND {WAITS} AND tenant_id <> (SELECT tenant_id FROM batches WHERE id = :batch))
""")
