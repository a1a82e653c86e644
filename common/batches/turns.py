"""Which batch a control worker processes next: tenants take turns, however many batches each of them has.

A message only wakes a control worker. A batch that one processes is touched about twice a second; one that was not
touched for IDLE_S, or never, waits.

A process can die of a batch, and says nothing then. So turns are counted when they begin, in `open_turns`; what brings
the batch further, and the end of a turn, begin a new count.
"""

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from common.batches.lifecycle import HAS_WORK
from common.db import CODE

IDLE_S = 1.5


class Turn(NamedTuple):
    """The batch to process, and how many turns of it before this one are open since it last came further."""

    batch_id: UUID
    open_before: int


def take(connection: Connection, batch_id: UUID) -> Turn | None:
    """Begin a turn on a message for this batch, perhaps of another one: the message may come out of turn. None if no
    work is left.

    The batch is touched, so that others take another one. When MAX_FAILURES turns are open, none begins for SILENT_S:
    then their processes have died.
    """
    row = connection.execute(TAKE, {"batch": batch_id, "idle": IDLE_S, "code": CODE}).first()
    return Turn(row.id, row.open_turns - 1) if row else None


def end(connection: Connection, batch_id: UUID) -> None:
    """The turn has ended, whatever came of it: the process has not died of the batch."""
    connection.execute(END, {"batch": batch_id})


def another_tenant_waits(connection: Connection, batch_id: UUID) -> bool:
    """Whether a batch of another tenant than this one's waits."""
    return bool(connection.execute(ANOTHER_WAITS, {"batch": batch_id, "idle": IDLE_S, "code": CODE}).scalar())


WAITS = "(touched_at = created_at OR touched_at < now() - make_interval(secs => :idle))"

# Begin a turn of the next batch that waits, or of the given one: of the tenant that was served least recently, its
# oldest first.
TAKE = text(f"""
    UPDATE batches SET touched_at = now(), open_turns = open_turns + 1 WHERE id = (
        SELECT id FROM batches JOIN (
            SELECT tenant_id, max(touched_at) FILTER (WHERE touched_at > created_at) AS served_at
            FROM batches WHERE {HAS_WORK} GROUP BY tenant_id) AS tenants USING (tenant_id)
        WHERE {HAS_WORK} AND ({WAITS} OR id = :batch)
        ORDER BY served_at NULLS FIRST, touched_at, id LIMIT 1 FOR NO KEY UPDATE OF batches SKIP LOCKED)
    RETURNING id, open_turns
""")

# No turn of a batch is open, as far as this process knows.
END = text("UPDATE batches SET open_turns = 0 WHERE id = :batch AND open_turns > 0")

# Whether a batch of another tenant waits.
ANOTHER_WAITS = text(f"""
    SELECT EXISTS (SELECT FROM batches
        WHERE {HAS_WORK} AND {WAITS} AND tenant_id <> (SELECT tenant_id FROM batches WHERE id = :batch))
""")
