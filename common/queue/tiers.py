"""Tiers: how urgent a job is, changed while it has not ended. No state changes: what waits moves to another lane.

    lane of the old tier ──(images that wait, and their count of what is open)──► lane of the new tier

What a lease holds stays in its lane and is finished there, or waits there again if it comes back. A job of a batch
stays in it: its new lane is one of the batch, and closed if the batch is paused or cancelled.
Rows are locked as everywhere: batches, jobs, images, lanes, each by id. A claim that was faster keeps its images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import Tier
from common.errors import Conflict, NotFound
from common.queue.jobs import LOCK_JOB


@dataclass(frozen=True)
class Moved:
    """The jobs whose tier was changed, and the models to wake."""

    jobs: tuple[UUID, ...]
    models: frozenset[str]


def change(connection: Connection, job_id: UUID, tenant_id: UUID, tier: Tier) -> Moved:
    """Change the tier of a job that has not ended. Raises NotFound, or Conflict when it has."""
    lock_batches(connection, [job_id], tenant_id)
    job = connection.execute(LOCK_JOB, {"job": job_id, "tenant": tenant_id}).first()
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    if job.finished_at is not None:
        raise Conflict(f"Job {job_id} is {job.state}; only a job that has not ended can change its tier.")
    return change_locked(connection, [job_id], tier)


def lock_batches(connection: Connection, job_ids: Sequence[UUID], tenant_id: UUID) -> None:
    """Keep the batches of these jobs from being paused, resumed or cancelled meanwhile. Comes before their jobs."""
    connection.execute(LOCK_BATCHES, {"jobs": list(job_ids), "tenant": tenant_id})


def change_locked(connection: Connection, job_ids: Sequence[UUID], tier: Tier) -> Moved:
    """The same for jobs that are locked already, as are their batches. Those that have the tier already count not."""
    to = {"jobs": list(job_ids), "tier": tier.value}
    connection.execute(MAKE_LANES, to)
    rows = connection.execute(MOVE, to).all()
    return Moved(tuple(row.id for row in rows), frozenset(row.model for row in rows))


# MISPLACED are images that no lease holds. With their jobs locked they can only become fewer, by claims.

MISPLACED = """
    images.job_id = ANY(:jobs) AND images.state = 'queued' AND images.lease_id IS NULL
    AND lanes.tier <> cast(:tier AS tier)
"""

LOCK_BATCHES = text("""
    SELECT id FROM batches
    WHERE id = ANY(ARRAY(SELECT batch_id FROM jobs WHERE id = ANY(:jobs) AND tenant_id = :tenant))
    ORDER BY id FOR SHARE
""")

# In one order, so that two who make the same lanes wait for each other in one direction.
MAKE_LANES = text(f"""
    INSERT INTO lanes (tenant_id, tier, model, compatibility, batch_id, closed, open)
    SELECT DISTINCT lanes.tenant_id, cast(:tier AS tier), lanes.model, lanes.compatibility, lanes.batch_id,
           batches.paused_at IS NOT NULL OR batches.cancelled_at IS NOT NULL, 0
    FROM images JOIN lanes ON lanes.id = images.lane_id LEFT JOIN batches ON batches.id = lanes.batch_id
    WHERE {MISPLACED}
    ORDER BY lanes.tenant_id, lanes.compatibility, lanes.batch_id
    ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO NOTHING
""")

MOVE = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT images.id, lanes.id AS source, lanes.tenant_id, lanes.compatibility, lanes.batch_id
        FROM images JOIN lanes ON lanes.id = images.lane_id
        WHERE {MISPLACED} ORDER BY images.id FOR NO KEY UPDATE OF images),
    moved AS (
        UPDATE images SET lane_id = lanes.id
        FROM waiting JOIN lanes ON lanes.tenant_id = waiting.tenant_id AND lanes.tier = cast(:tier AS tier)
            AND lanes.compatibility = waiting.compatibility AND lanes.batch_id IS NOT DISTINCT FROM waiting.batch_id
        WHERE images.id = waiting.id
        RETURNING images.job_id, waiting.source, lanes.id AS target),
    tally AS (
        SELECT lane.id, sum(lane.images) AS images
        FROM moved CROSS JOIN LATERAL (VALUES (source, -1), (target, 1)) AS lane(id, images) GROUP BY lane.id),
    lane_lock AS MATERIALIZED (
        SELECT id FROM lanes WHERE id IN (SELECT id FROM tally) ORDER BY id FOR NO KEY UPDATE),
    counted AS (
        UPDATE lanes SET open = lanes.open + tally.images
        FROM tally JOIN lane_lock ON lane_lock.id = tally.id WHERE lanes.id = tally.id)
    UPDATE jobs SET tier = cast(:tier AS tier)
    WHERE id = ANY(:jobs) AND finished_at IS NULL
        AND (tier <> cast(:tier AS tier) OR id IN (SELECT job_id FROM moved))
    RETURNING id, model
""")
