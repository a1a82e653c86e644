"""Tiers: how urgent a job is, changed while it has not ended. No state changes: waiting images move to another lane.

    lane of the old tier ──(waiting images, and the count of open ones)──► lane of the new tier

Images that a lease holds stay in their lane: they end there, or wait there again when they are released. A job of a
batch stays in it: its new lane is one of the batch, and closed if the batch is paused or cancelled. A claim that runs
at the same time keeps its images. Lock order: batches, jobs, images, lanes, each by id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.admission import UNLIMITED, admit
from common.accounts.limits import Limits
from common.enums import Tier
from common.errors import Conflict, NotFound
from common.queue import sentence
from common.queue.jobs import LOCK_JOB
from common.queue.lanes import Lane, make_lanes


@dataclass(frozen=True)
class Moved:
    """The jobs whose tier was changed, and the models to wake."""

    jobs: tuple[UUID, ...]
    models: frozenset[str]


def change(connection: Connection, job_id: UUID, tenant_id: UUID, tier: Tier, limits: Limits = UNLIMITED) -> Moved:
    """Change the tier of a job. Raises NotFound, LimitReached, or Conflict when the job has ended."""
    lock_batches(connection, [job_id], tenant_id)
    job = connection.execute(LOCK_JOB, {"job": job_id, "tenant": tenant_id}).first()
    if job is None:
        raise NotFound(sentence("job_unknown", job=job_id))
    if job.finished_at is not None:
        raise Conflict(sentence("job_ended", job=job_id, state=job.state))
    return change_locked(connection, tenant_id, [job_id], tier, limits)


def lock_batches(connection: Connection, job_ids: Sequence[UUID], tenant_id: UUID) -> None:
    """Keep the batches of these jobs from being paused, resumed or cancelled. Call it before the jobs are locked."""
    connection.execute(LOCK_BATCHES, {"jobs": list(job_ids), "tenant": tenant_id})


def change_locked(
    connection: Connection, tenant_id: UUID, job_ids: Sequence[UUID], tier: Tier, limits: Limits = UNLIMITED
) -> Moved:
    """Change the tier of jobs. The caller has locked them and their batches. Skips jobs that have the tier already.

    Raises LimitReached.
    """
    target = {"jobs": list(job_ids), "tier": tier.value}
    if tier is Tier.INTERACTIVE and limits.waiting_interactive is not None:
        moving = connection.execute(COUNT_MISPLACED, target).scalar_one()
        admit(connection, tenant_id, limits, interactive=moving)
    rows = connection.execute(FIND_SOURCES, target)
    make_lanes(
        connection,
        [
            Lane(row.tenant_id, tier, row.model, row.compatibility, row.batch_id, row.is_closed, row.needs_code)
            for row in rows
        ],
    )
    moved = connection.execute(MOVE, target).all()
    return Moved(tuple(row.id for row in moved), frozenset(row.model for row in moved))


# Images that wait in a lane of another tier. With their jobs locked, only claims can make them fewer.
MISPLACED = """
    images.job_id = ANY(:jobs) AND images.state = 'queued' AND images.lease_id IS NULL
    AND lanes.tier <> cast(:tier AS tier)
"""

# Locks the batches of jobs, shared.
LOCK_BATCHES = text("""
    SELECT id FROM batches
    WHERE id = ANY(ARRAY(SELECT batch_id FROM jobs WHERE id = ANY(:jobs) AND tenant_id = :tenant))
    ORDER BY id FOR SHARE
""")

# Counts the images that would move.
COUNT_MISPLACED = text(f"SELECT count(*) FROM images JOIN lanes ON lanes.id = images.lane_id WHERE {MISPLACED}")

# Finds the lanes that images have to leave.
FIND_SOURCES = text(f"""
    SELECT DISTINCT lanes.tenant_id, lanes.model, lanes.compatibility, lanes.batch_id, lanes.needs_code,
           batches.paused_at IS NOT NULL OR batches.cancelled_at IS NOT NULL AS is_closed
    FROM images JOIN lanes ON lanes.id = images.lane_id LEFT JOIN batches ON batches.id = lanes.batch_id
    WHERE {MISPLACED}
""")

# Moves waiting images, moves their count between the lanes, and changes the tier of the jobs.
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
