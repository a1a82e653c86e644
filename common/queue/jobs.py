"""Jobs: submit, cancel, retry, expire, settle. `leases` ends their images; `lanes` is where those wait.

    submit ──► queued ──► running ──► succeeded | failed        (an image starts; its last image ends)
                  ├──────────┴──────► failed                    (expire: its deadline has passed)
                  └──────────┴──────► cancelled                 (by its tenant or the operator)

Every function takes an open connection. The caller commits, and sends to Redis after that. Lock order: leases, batches,
jobs, images, lanes, each by id.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.accounts.admission import UNLIMITED, admit_images
from common.accounts.limits import Limits
from common.db import new_id
from common.enums import JobState, Tier
from common.errors import Conflict, NotFound
from common.failures import rests
from common.queue import sentence
from common.queue.lanes import LOWER_LANES, Lane
from common.recipes.recipe import Recipe, canonical_json
from common.schema import shown


@dataclass(frozen=True)
class Job:
    """What a message about a job names."""

    id: UUID
    tenant_id: UUID
    model: str
    tier: Tier


def submit(
    connection: Connection,
    tenant_id: UUID,
    recipe: Recipe,
    *,
    tier: Tier = Tier.STANDARD,
    warnings: tuple[str, ...] = (),
    parent_id: UUID | None = None,
    request_id: str | None = None,
    job_id: UUID | None = None,
    expires_after_s: float | None = None,
    limits: Limits = UNLIMITED,
    key_id: UUID | None = None,
) -> Job:
    """Insert a job and its images, queued in the lane of its tenant, tier and compatibility. Raises LimitReached.

    The job fails if it has not ended after `expires_after_s` seconds: see `expire`. `key_id`: who submits it.
    """
    admit_images(connection, tenant_id, limits, [tier] * recipe.count)
    lane = Lane(tenant_id, tier, recipe.model, recipe.compatibility, needs_code=recipe.needs_code)
    job_id = job_id or new_id()
    row = _row(job_id, lane, recipe.model_dump(mode="json"), warnings, parent_id, request_id, key_id)
    connection.execute(INSERT_JOB, row | {"expires": expires_after_s})
    return Job(job_id, tenant_id, recipe.model, tier)


def cancel(connection: Connection, job_id: UUID, tenant_id: UUID | None = None) -> bool:
    """Cancel a job and those of its images that have not ended; True if this call did it.

    A job that had ended stays as it is (False). Raises NotFound when the tenant has no such job; no tenant: any job.
    """
    lock = connection.execute(LOCK_JOB, {"job": job_id, "tenant": tenant_id}).first()
    if lock is None:
        raise NotFound(sentence("job_unknown", job=job_id))
    return bool(cancel_locked(connection, [job_id]))


def cancel_locked(connection: Connection, job_ids: Sequence[UUID]) -> list[UUID]:
    """Cancel those of these locked jobs that have not ended, and their images; the ids of those."""
    return list(connection.execute(CANCEL, {"jobs": list(job_ids)}).scalars())


def cancel_image(connection: Connection, image_id: UUID) -> None:
    """Cancel an image of a locked job, if it has not ended; the job ends if this was its last one."""
    connection.execute(CANCEL_IMAGE, {"image": image_id})


def retry(
    connection: Connection,
    job_id: UUID,
    tenant_id: UUID,
    request_id: str | None = None,
    limits: Limits = UNLIMITED,
    key_id: UUID | None = None,
) -> Job:
    """Submit the recipe of a job that has ended as a new job that names its parent. It has no deadline.

    Raises NotFound, LimitReached, or Conflict while the job has not ended.
    """
    parent = connection.execute(LOCK_JOB, {"job": job_id, "tenant": tenant_id}).first()
    if parent is None:
        raise NotFound(sentence("job_unknown", job=job_id))
    if parent.finished_at is None:
        raise Conflict(sentence("job_not_ended", job=job_id, state=parent.state))
    admit_images(connection, tenant_id, limits, tiers_of([parent]))
    return retry_locked(connection, [parent], retry_lanes(connection, [parent], tenant_id), request_id, key_id)[0]


def tiers_of(parents: Iterable[Row[Any]]) -> list[Tier]:
    """The tier of each image of the retries of these jobs (tier, recipe)."""
    return [Tier(parent.tier) for parent in parents for _ in parent.recipe["seeds"]]


def retry_lanes(connection: Connection, parents: Iterable[Row[Any]], tenant_id: UUID) -> dict[UUID, Lane]:
    """The lane of a retry of each of these jobs (id, tier): as its own, but of no batch."""
    tiers = {parent.id: Tier(parent.tier) for parent in parents}
    rows = connection.execute(LANES_OF_JOBS, {"jobs": list(tiers)})
    return {
        row.job_id: Lane(tenant_id, tiers[row.job_id], row.model, row.compatibility, needs_code=row.needs_code)
        for row in rows
    }


def retry_locked(
    connection: Connection,
    parents: Iterable[Row[Any]],
    lanes: Mapping[UUID, Lane],
    request_id: str | None = None,
    key_id: UUID | None = None,
) -> list[Job]:
    """Retry these jobs (id, recipe, warnings), which have ended and are locked, in one round trip.

    A recipe is copied as it is stored: code that does not know all of its fields can do that too.
    """
    retries, rows = [], []
    for parent in parents:
        lane = lanes[parent.id]
        retries.append(Job(new_id(), lane.tenant_id, lane.model, lane.tier))
        row = _row(retries[-1].id, lane, parent.recipe, parent.warnings, parent.id, request_id, key_id)
        rows.append(row | {"expires": None})
    if rows:
        connection.execute(INSERT_JOB, rows)
    return retries


def overdue(connection: Connection) -> list[UUID]:
    """Jobs whose deadline has passed."""
    return list(connection.execute(OVERDUE).scalars())


def expire(connection: Connection, job_ids: Sequence[UUID]) -> list[UUID]:
    """Fail those of these jobs whose deadline has passed, with `expired`; their ids. Their stored images stay.

    Skips jobs that are locked: the next sweep finds them again.
    """
    overdue = connection.execute(LOCK_OVERDUE, {"jobs": list(job_ids)}).scalars().all()
    parameters = {"jobs": overdue, "message": sentence("deadline_passed")}
    return list(connection.execute(EXPIRE, parameters).scalars()) if overdue else []


def lock_jobs_of_images(connection: Connection, image_ids: list[UUID]) -> None:
    """Lock the jobs of these images, by id, so that two workers cannot deadlock."""
    connection.execute(LOCK_JOBS_OF_IMAGES, {"images": image_ids})


def _row(
    job_id: UUID,
    lane: Lane,
    recipe: Mapping[str, Any],
    warnings: Iterable[str],
    parent_id: UUID | None,
    request_id: str | None,
    key_id: UUID | None,
) -> dict[str, Any]:
    return {
        "job": job_id,
        "tenant": lane.tenant_id,
        "parent": parent_id,
        "tier": lane.tier.value,
        "recipe": canonical_json(recipe),
        "warnings": list(warnings),
        "count": len(recipe["seeds"]),
        "request": request_id,
        "key": key_id,
        "model": lane.model,
        "compatibility": lane.compatibility,
        "needs_code": lane.needs_code,
        "images": [new_id() for _ in recipe["seeds"]],
    }


# Lowers the open images of jobs and lanes, and ends the jobs that reach zero. Follows a CTE ended(job_id, lane_id,
# state, error_code, error_message) of images that have just ended. A job's error is that of the image that failed last.
SETTLE = f"""
    tally AS (
        SELECT job_id, count(*) AS images, count(*) FILTER (WHERE state = 'failed') AS failed,
               min(error_code) FILTER (WHERE state = 'failed') AS error_code,
               min(error_message) FILTER (WHERE state = 'failed') AS error_message
        FROM ended GROUP BY job_id),
    settled AS (
        UPDATE jobs SET
            open = jobs.open - tally.images,
            failed = jobs.failed + tally.failed,
            error_code = coalesce(tally.error_code, jobs.error_code),
            error_message = coalesce(tally.error_message, jobs.error_message),
            state = CASE WHEN jobs.open > tally.images THEN jobs.state
                         WHEN jobs.failed + tally.failed > 0 THEN '{JobState.FAILED}'::job_state
                         ELSE '{JobState.SUCCEEDED}'::job_state END,
            finished_at = CASE WHEN jobs.open > tally.images THEN NULL ELSE now() END
        FROM tally WHERE jobs.id = tally.job_id AND jobs.finished_at IS NULL
        RETURNING jobs.id, jobs.state, jobs.finished_at),
    {LOWER_LANES}
"""

# Raises the lane's open images, then inserts the job and its images.
INSERT_JOB = text("""
    WITH lane AS (
        INSERT INTO lanes (tenant_id, tier, model, compatibility, needs_code, open)
        VALUES (:tenant, cast(:tier AS tier), :model, :compatibility, :needs_code, :count)
        ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO UPDATE SET open = lanes.open + excluded.open
        RETURNING id),
    job AS (
        INSERT INTO jobs (id, tenant_id, parent_id, tier, recipe, warnings, count, open, request_id, key_id, deadline,
            origin)
        VALUES (:job, :tenant, :parent, cast(:tier AS tier), cast(:recipe AS jsonb), cast(:warnings AS text[]),
                :count, :count, :request, :key, now() + make_interval(secs => cast(:expires AS double precision)),
                (SELECT origin FROM jobs AS parent WHERE parent.id = :parent))
        RETURNING id)
    INSERT INTO images (id, job_id, lane_id, index)
    SELECT image.id, job.id, lane.id, image.position - 1
    FROM job, lane, unnest(cast(:images AS uuid[])) WITH ORDINALITY AS image(id, position)
""")

# Locks a job. No tenant: any tenant's.
LOCK_JOB = text(f"""
    SELECT id, state, tier, recipe, warnings, finished_at FROM jobs
    WHERE id = :job AND (tenant_id = :tenant OR cast(:tenant AS uuid) IS NULL) AND {shown()} FOR NO KEY UPDATE
""")

# Finds the lanes of jobs; those of one job differ in their tier at most.
LANES_OF_JOBS = text("""
    SELECT DISTINCT ON (images.job_id) images.job_id, lanes.model, lanes.compatibility, lanes.needs_code
    FROM images JOIN lanes ON lanes.id = images.lane_id WHERE images.job_id = ANY(:jobs)
""")

# Locks the jobs of images, by id.
LOCK_JOBS_OF_IMAGES = text("""
    SELECT id FROM jobs WHERE id = ANY(ARRAY(SELECT job_id FROM images WHERE id = ANY(:images)))
    ORDER BY id FOR NO KEY UPDATE
""")

# Cancels jobs that have not ended, with their images that have not ended.
CANCEL = text(f"""
    WITH job AS (
        UPDATE jobs SET state = 'cancelled', open = 0, finished_at = now()
        WHERE id = ANY(:jobs) AND state IN ('queued', 'running') RETURNING id),
    ended AS (
        UPDATE images SET state = 'cancelled', finished_at = now(), not_before = NULL FROM job
        WHERE images.job_id = job.id AND images.state IN ('queued', 'running') RETURNING images.lane_id, images.state),
    {LOWER_LANES}
    SELECT id FROM job
""")

# Cancels an image that has not ended, and settles its job.
CANCEL_IMAGE = text(f"""
    WITH ended AS (
        UPDATE images SET state = 'cancelled', finished_at = now(), not_before = NULL
        WHERE id = :image AND state IN ('queued', 'running')
        RETURNING job_id, lane_id, state, error_code, error_message),
    {SETTLE}
    SELECT id FROM settled
""")

# Finds jobs whose deadline has passed.
OVERDUE = text(f"""
    SELECT id FROM jobs WHERE deadline <= now() AND finished_at IS NULL AND NOT {rests("expire", "jobs.id")}
    ORDER BY deadline LIMIT 100
""")

# Locks those of these jobs whose deadline has passed.
LOCK_OVERDUE = text("""
    SELECT id FROM jobs WHERE id = ANY(:jobs) AND deadline <= now() AND finished_at IS NULL
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")

# Fails all images of jobs that have not ended.
EXPIRE = text(f"""
    WITH ended AS (
        UPDATE images SET state = 'failed', finished_at = now(), not_before = NULL, error_code = 'expired',
            error_message = :message
        WHERE job_id = ANY(:jobs) AND state IN ('queued', 'running')
        RETURNING job_id, lane_id, state, error_code, error_message),
    {SETTLE}
    SELECT id FROM settled
""")
