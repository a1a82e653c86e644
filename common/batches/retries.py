"""Retries of batches: the failed images of a batch that has ended are rendered again, in a batch that names it.

    retry ──► expanding ──► running ──► ended        and all else as any batch

A batch has one retry; what fails in the retry is left to a retry of that. Each failed job has a retry job in it, with
the same recipe and tier but only the images that failed, so that their seeds and names stay what they were. A flagged
image has not failed. The parent is read in chunks, by the positions of its jobs. If the retry is cancelled, a second
one takes what the first one did not reach.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.admission import UNLIMITED, admit_batch, count_day
from common.accounts.limits import Limits
from common.batches import sentence
from common.batches.chunks import FENCE, SHOWN_WARNINGS, Batch, fence_params
from common.batches.expansion import LOCK_TO_EXPAND, OPEN_LANES
from common.db import new_id
from common.enums import Tier
from common.errors import Conflict, NotFound
from common.failures import PROGRESS
from common.queue.bulk import FindRefusal
from common.queue.lanes import EXACT, Lane, make_lanes
from common.schema import shown

CHUNK_IMAGES = 8000  # of the parent, failed or not


def submit(
    connection: Connection,
    tenant_id: UUID,
    parent_id: UUID,
    *,
    request_id: str | None = None,
    limits: Limits = UNLIMITED,
    key_id: UUID | None = None,
) -> tuple[UUID, bool]:
    """Insert a retry of a batch, or find the one that has not ended. Returns its id, and whether it is new.

    Raises NotFound, LimitReached, or Conflict if the batch has not ended, if nothing failed, or if its retry has ended.
    """
    named = {"parent": parent_id, "tenant": tenant_id}
    failed = connection.execute(COUNT_FAILED, named).first()
    if failed:
        admit_batch(connection, tenant_id, limits, Tier(failed.tier), failed.images)
    new = {
        "batch": new_id(),
        "request": request_id,
        "key": key_id,
        "expected": failed.images if failed else None,
    }
    retry_id = connection.execute(INSERT, named | new).scalar()
    if retry_id:
        return retry_id, True
    parent = connection.execute(READ_PARENT, named).first()
    if parent is None:
        raise NotFound(sentence("batch_unknown", batch=parent_id))
    if parent.finished_at is None and parent.cancelled_at is None:
        raise Conflict(sentence("batch_not_ended", batch=parent_id))
    if parent.finished_at is None:
        raise Conflict(sentence("batch_not_settled", batch=parent_id))
    if parent.retry_id is None:
        raise Conflict(sentence("nothing_failed", batch=parent_id))
    if parent.has_retry_ended:
        raise Conflict(sentence("retried_already", batch=parent_id, retry=parent.retry_id))
    return parent.retry_id, False


def models(connection: Connection, tenant_id: UUID, parent_id: UUID) -> list[str]:
    """The models of the failed images of this batch."""
    return list(connection.execute(MODELS, {"parent": parent_id, "tenant": tenant_id}).scalars())


def expand(
    connection: Connection, batch: Batch, limits: Limits = UNLIMITED, refusal: FindRefusal | None = None
) -> Mapping[str, int] | None:
    """Insert the next retry jobs; returns their number by model.

    Jobs whose recipes have a `refusal` are left out, and a warning says so. None if another worker was first, or the
    batch was cancelled.
    """
    locked = connection.execute(LOCK_TO_EXPAND, fence_params(batch)).first()
    if locked is None:
        return None
    parent = connection.execute(SIZE, {"parent": batch.parent_id}).one()
    until = batch.offset + max(1, CHUNK_IMAGES * parent.jobs // max(parent.images, 1))
    failed = connection.execute(FAILED, {"parent": batch.parent_id, "start": batch.offset, "until": until}).all()
    refused = _refused(connection, {row.job_id for row in failed}, refusal) if refusal else {}
    failed = [row for row in failed if row.job_id not in refused]
    images = Counter[UUID](row.job_id for row in failed)  # in the order of their positions
    if images:
        _insert(connection, batch, failed, images, is_paused=locked.paused_at is not None)
        count_day(connection, batch.tenant_id, limits, len(failed))
    moved = {"until": until, "is_last": until >= parent.jobs, "jobs": len(images), "images": len(failed)}
    reasons = Counter(refused.values())
    warnings = [sentence("not_retried", count=count, reason=reason) for reason, count in reasons.items()]
    connection.execute(EXPANDED, fence_params(batch) | moved | {"warned": len(refused), "warnings": warnings})
    return Counter({row.job_id: row.model for row in failed}.values())


def stop_expanding(connection: Connection, parent_ids: Sequence[UUID]) -> None:
    """Let the retries of these batches, which are deleted, have the jobs that they have now."""
    connection.execute(STOP_EXPANDING, {"parents": list(parent_ids)})


def _refused(connection: Connection, job_ids: set[UUID], refusal: FindRefusal) -> dict[UUID, str]:
    """Why jobs are refused, by their ids."""
    rows = connection.execute(RECIPES, {"jobs": list(job_ids)})
    return {row.id: reason for row in rows if (reason := refusal(row.recipe))}


def _insert(connection: Connection, batch: Batch, failed: Any, images: Counter[UUID], *, is_paused: bool) -> None:
    common = {
        "tenant": batch.tenant_id,
        "batch": batch.id,
        "tier": batch.tier.value,
        "request": batch.request_id,
        "key": batch.key_id,
    }
    wanted = {
        row.lane_id: Lane(
            batch.tenant_id, batch.tier, row.model, row.compatibility, batch.id, is_paused, row.needs_code
        )
        for row in failed
    }
    lanes = dict(zip(wanted, make_lanes(connection, wanted.values()), strict=True))
    retry_jobs = {job_id: new_id() for job_id in images}
    jobs = {
        "retry_jobs": list(retry_jobs.values()),
        "parents": list(retry_jobs),
        "positions": list(range(batch.jobs, batch.jobs + len(retry_jobs))),
        "images": list(images.values()),
    }
    connection.execute(INSERT_JOBS, common | jobs)
    rows = {
        "images": [new_id() for _ in failed],
        "jobs": [retry_jobs[row.job_id] for row in failed],
        "lanes": [lanes[row.lane_id] for row in failed],
        "indices": [row._mapping["index"] for row in failed],
    }
    connection.execute(INSERT_IMAGES, rows)
    added = Counter(rows["lanes"])  # last: publishes in locked lanes are counted later
    connection.execute(OPEN_LANES, {"lanes": list(added), "images": list(added.values())})


# Count the failed images of a batch that has ended and has no retry, other than cancelled ones.
COUNT_FAILED = text(f"""
    SELECT tier, (
        SELECT coalesce(sum(failed - deleted_failed), 0)::bigint FROM {EXACT} AS lanes
        WHERE lanes.batch_id = batches.id) AS images
    FROM batches
    WHERE id = :parent AND tenant_id = :tenant AND finished_at IS NOT NULL AND deleted_at IS NULL AND NOT EXISTS (
        SELECT FROM batches AS retry WHERE retry.parent_id = batches.id AND retry.cancelled_at IS NULL)
""")

# Insert the retry of a batch that has ended and has failed images, unless it has one that was not cancelled.
INSERT = text("""
    INSERT INTO batches (
        id, tenant_id, upload_id, parent_id, name, tier, plan, stop_rule, request_id, key_id, needs_code, prompts,
        kept, expected, checked_at)
    SELECT :batch, tenant_id, upload_id, id, name, tier, plan, stop_rule, :request, :key, needs_code, 0,
           kept, cast(:expected AS bigint), now() FROM batches
    WHERE id = :parent AND tenant_id = :tenant AND finished_at IS NOT NULL AND deleted_at IS NULL
        AND EXISTS (SELECT FROM lanes WHERE lanes.batch_id = batches.id AND lanes.failed > lanes.deleted_failed)
    ON CONFLICT (parent_id, cancelled_at) WHERE parent_id IS NOT NULL DO NOTHING
    RETURNING id
""")

# Read how far a batch and its retry are.
READ_PARENT = text("""
    SELECT parent.finished_at, parent.cancelled_at, retry.id AS retry_id,
           retry.finished_at IS NOT NULL AS has_retry_ended
    FROM batches AS parent
    LEFT JOIN batches AS retry ON retry.parent_id = parent.id AND retry.cancelled_at IS NULL
    WHERE parent.id = :parent AND parent.tenant_id = :tenant AND parent.deleted_at IS NULL
""")

# List the models of the failed images of a batch.
MODELS = text("""
    SELECT DISTINCT model FROM lanes
    WHERE batch_id = :parent AND tenant_id = :tenant AND failed > deleted_failed ORDER BY model
""")

# Read how many jobs and images a batch has.
SIZE = text("SELECT jobs, images FROM batches WHERE id = :parent")

# Read the failed images of a chunk of jobs that have no retry job in a batch, other than cancelled ones.
FAILED = text(f"""
    SELECT images.job_id, images.index, images.lane_id, lanes.model, lanes.compatibility, lanes.needs_code
    FROM (SELECT id, position FROM jobs
          WHERE batch_id = :parent AND position >= :start AND position < :until AND state = 'failed'
              AND NOT EXISTS (SELECT FROM jobs AS retry_job WHERE retry_job.parent_id = jobs.id
                              AND retry_job.batch_id IS NOT NULL AND retry_job.state <> 'cancelled'
                              AND {shown("retry_job")})) AS job
    JOIN images ON images.job_id = job.id AND images.state = 'failed'
    JOIN lanes ON lanes.id = images.lane_id
    ORDER BY job.position, images.index
""")

# Read the recipes of jobs.
RECIPES = text("SELECT id, recipe FROM jobs WHERE id = ANY(:jobs)")

# Insert the retry jobs, with the recipes and origins of their parents.
INSERT_JOBS = text("""
    INSERT INTO jobs (id, tenant_id, parent_id, batch_id, position, tier, recipe, count, open, request_id, key_id,
        origin)
    SELECT retry_job.id, :tenant, jobs.id, :batch, retry_job.position, cast(:tier AS tier), recipe,
           retry_job.images, retry_job.images, :request, :key, origin
    FROM unnest(cast(:retry_jobs AS uuid[]), cast(:parents AS uuid[]), cast(:positions AS bigint[]),
                cast(:images AS int[])) AS retry_job(id, parent_id, position, images)
    JOIN jobs ON jobs.id = retry_job.parent_id
""")

# Insert the images of the retry jobs.
INSERT_IMAGES = text("""
    INSERT INTO images (id, job_id, lane_id, index)
    SELECT * FROM unnest(
        cast(:images AS uuid[]), cast(:jobs AS uuid[]), cast(:lanes AS bigint[]), cast(:indices AS smallint[]))
""")

# Move a retry behind a chunk of its parent; behind the last one it is expanded.
EXPANDED = text(f"""
    UPDATE batches SET "offset" = :until, prompts = prompts + :jobs, jobs = jobs + :jobs, images = images + :images,
        warned = warned + :warned, warnings = (warnings || cast(:warnings AS text[]))[1 : {SHOWN_WARNINGS}],
        expanded_at = CASE WHEN :is_last THEN now() END, touched_at = now(), {PROGRESS}
    WHERE {FENCE}
""")

# Ends the expansion of retries.
STOP_EXPANDING = text("""
    UPDATE batches SET expanded_at = now()
    WHERE parent_id = ANY(:parents) AND expanded_at IS NULL AND cancelled_at IS NULL AND finished_at IS NULL
""")
