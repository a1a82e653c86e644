"""Lanes: the queues that images wait in, and their counters: how many are open, and how many have ended, by state.

    an image ends ──► lanes                      if the row of its lane was not written within the last second
              └─────► lane_changes ──► lanes     otherwise, or if the row is locked; the sweep adds them up (`count`)

So what ends never waits for the row of a lane, and a busy lane is written about once a second instead of at every
publish: while an old snapshot is open (`pg_dump`), no claim steps over a dead version for each microbatch. The sum of
both tables is exact at any time. `open` alone is never too low, because whatever raises it writes the lane at once.

The lanes of a batch that has ended are its counters while it has jobs. After that their sum is kept in one closed lane
of the tenant, tier and model, so that what charts and metrics count never decreases.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import Tier


@dataclass(frozen=True)
class Lane:
    """Where images wait that one pipeline call can render together, of one tenant and tier, and of one batch or none.

    Nothing in a closed lane is claimed or started. Code older than `needs_code` claims nothing in it.
    """

    tenant_id: UUID
    tier: Tier
    model: str
    compatibility: str
    batch_id: UUID | None = None
    closed: bool = False
    needs_code: int = 1


def make_lanes(connection: Connection, lanes: Iterable[Lane]) -> list[int]:
    """The ids of these lanes, in their order. Those that do not exist are made, empty; `closed` is of those only."""
    rows = [{"number": number, **asdict(lane)} for number, lane in enumerate(lanes)]
    wanted = {"lanes": json.dumps(rows, default=str)}
    connection.execute(MAKE_LANES, wanted)
    return list(connection.execute(FIND_LANES, wanted).scalars())


def count(connection: Connection) -> None:
    """Add the waiting changes up in their lanes. Skips lanes that are locked."""
    connection.execute(COUNT)


# Lowers the open images of lanes, and counts the ended ones by state. Follows a CTE ended(lane_id, state).
LOWER_LANES = """
    lane_tally AS (
        SELECT lane_id, count(*) AS ended, count(*) FILTER (WHERE state = 'stored') AS stored,
               count(*) FILTER (WHERE state = 'flagged') AS flagged, count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled
        FROM ended GROUP BY lane_id),
    lane_lock AS MATERIALIZED (
        SELECT id FROM lanes
        WHERE id IN (SELECT lane_id FROM lane_tally) AND (counted_at IS NULL OR counted_at < now() - interval '1 s')
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
    lowered AS (
        UPDATE lanes SET open = lanes.open - lane_tally.ended, stored = lanes.stored + lane_tally.stored,
            flagged = lanes.flagged + lane_tally.flagged, failed = lanes.failed + lane_tally.failed,
            cancelled = lanes.cancelled + lane_tally.cancelled, counted_at = now()
        FROM lane_tally JOIN lane_lock ON lane_lock.id = lane_tally.lane_id WHERE lanes.id = lane_tally.lane_id),
    deferred AS (
        INSERT INTO lane_changes (lane_id, ended, stored, flagged, failed, cancelled)
        SELECT lane_id, ended, stored, flagged, failed, cancelled FROM lane_tally
        WHERE lane_id NOT IN (SELECT id FROM lane_lock))
"""

# What the lanes do not count yet, by lane.
UNCOUNTED = """
    SELECT lane_id, sum(ended)::bigint AS ended, sum(stored)::bigint AS stored, sum(flagged)::bigint AS flagged,
           sum(failed)::bigint AS failed, sum(cancelled)::bigint AS cancelled
    FROM lane_changes GROUP BY lane_id"""

# The lanes with exact counters.
EXACT = f"""
    (SELECT lanes.id, lanes.tenant_id, lanes.model, lanes.tier, lanes.closed, lanes.batch_id,
            lanes.open - coalesce(uncounted.ended, 0) AS open, lanes.stored + coalesce(uncounted.stored, 0) AS stored,
            lanes.flagged + coalesce(uncounted.flagged, 0) AS flagged,
            lanes.failed + coalesce(uncounted.failed, 0) AS failed,
            lanes.cancelled + coalesce(uncounted.cancelled, 0) AS cancelled,
            lanes.deleted_stored, lanes.deleted_flagged, lanes.deleted_failed, lanes.deleted_cancelled,
            lanes.pictures_kept_from
     FROM lanes LEFT JOIN ({UNCOUNTED}) AS uncounted ON uncounted.lane_id = lanes.id)"""

# Adds the changes up in their lanes.
COUNT = text("""
    WITH lane_lock AS MATERIALIZED (
        SELECT id FROM lanes WHERE id IN (SELECT lane_id FROM lane_changes) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
    change AS (
        DELETE FROM lane_changes USING lane_lock WHERE lane_changes.lane_id = lane_lock.id
        RETURNING lane_id, ended, stored, flagged, failed, cancelled),
    tally AS (
        SELECT lane_id, sum(ended) AS ended, sum(stored) AS stored, sum(flagged) AS flagged, sum(failed) AS failed,
               sum(cancelled) AS cancelled
        FROM change GROUP BY lane_id)
    UPDATE lanes SET open = lanes.open - tally.ended, stored = lanes.stored + tally.stored,
        flagged = lanes.flagged + tally.flagged, failed = lanes.failed + tally.failed,
        cancelled = lanes.cancelled + tally.cancelled, counted_at = now()
    FROM tally WHERE lanes.id = tally.lane_id
""")

LANES = """
    jsonb_to_recordset(cast(:lanes AS jsonb)) AS wanted(
        number int, tenant_id uuid, tier tier, model text, compatibility text, batch_id uuid, closed boolean,
        needs_code int)
"""

# Makes the lanes that do not exist. Ordered, so that two transactions that make the same lanes cannot deadlock.
MAKE_LANES = text(f"""
    INSERT INTO lanes (tenant_id, tier, model, compatibility, batch_id, closed, needs_code, open)
    SELECT DISTINCT tenant_id, tier, model, compatibility, batch_id, closed, needs_code, 0 FROM {LANES}
    ORDER BY tenant_id, compatibility, tier, batch_id
    ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO NOTHING
""")

# Finds lanes, in the order of the list. By batch, or by the unique index: a tenant has old lanes of many batches.
FIND_LANES = text(f"""
    SELECT found.id FROM {LANES} CROSS JOIN LATERAL (
        SELECT id FROM lanes
        WHERE batch_id = wanted.batch_id AND tier = wanted.tier AND compatibility = wanted.compatibility
        UNION ALL
        SELECT id FROM lanes
        WHERE tenant_id = wanted.tenant_id AND tier = wanted.tier AND compatibility = wanted.compatibility
            AND batch_id IS NULL AND wanted.batch_id IS NULL) AS found
    ORDER BY number
""")


def archive(source: str) -> str:
    """SQL that adds counters (SQL of lanes) to those of the closed lane of their tenant, tier and model.

    So the counters of a model never decrease. What they count has no row.
    """
    return f"""
        INSERT INTO lanes (tenant_id, tier, model, compatibility, closed, open, stored, flagged, failed, cancelled,
            deleted_stored, deleted_flagged, deleted_failed, deleted_cancelled)
        SELECT tenant_id, tier, model, 'archive of ' || model, true, 0, sum(stored), sum(flagged), sum(failed),
               sum(cancelled), sum(stored), sum(flagged), sum(failed), sum(cancelled)
        FROM {source} GROUP BY tenant_id, tier, model ORDER BY tenant_id, tier, model
        ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO UPDATE SET
            stored = lanes.stored + excluded.stored, flagged = lanes.flagged + excluded.flagged,
            failed = lanes.failed + excluded.failed, cancelled = lanes.cancelled + excluded.cancelled,
            deleted_stored = lanes.deleted_stored + excluded.deleted_stored,
            deleted_flagged = lanes.deleted_flagged + excluded.deleted_flagged,
            deleted_failed = lanes.deleted_failed + excluded.deleted_failed,
            deleted_cancelled = lanes.deleted_cancelled + excluded.deleted_cancelled"""


# Whether nothing needs a lane any more: its batch ended so many days ago, and its jobs were deleted.
IS_OVER = """
    lanes.batch_id IS NOT NULL AND lanes.open = 0
    AND EXISTS (
        SELECT FROM batches WHERE batches.id = lanes.batch_id
            AND batches.finished_at < now() - make_interval(secs => 86400 * cast(:lease_days AS double precision)))
    AND NOT EXISTS (SELECT FROM jobs WHERE jobs.batch_id = lanes.batch_id)
    AND NOT EXISTS (SELECT FROM lane_changes WHERE lane_changes.lane_id = lanes.id)"""

# Deletes lanes that nothing needs, and adds their counters to those of the closed lane of their tenant, tier and model.
ARCHIVE = text(f"""
    WITH past AS MATERIALIZED (
        SELECT id FROM lanes WHERE {IS_OVER} ORDER BY id LIMIT :rows FOR UPDATE SKIP LOCKED),
    deleted AS (
        DELETE FROM lanes USING past WHERE lanes.id = past.id
        RETURNING tenant_id, tier, model, stored, flagged, failed, cancelled),
    archived AS ({archive("deleted")})
    SELECT FROM deleted
""")
