"""Retries of batches: what failed of a batch that has ended is drawn again, as a batch of its own that names it.

    retry ──► expanding ──► running ──► ended        and all else as any batch

A batch has one retry; what fails in that one is the next one's. Each job that failed has an heir in it: the same recipe
under the same tier, but only those images that failed, so the seeds and names of its pictures stay what they were. A
flagged image has not failed. Like a file, the parent is read a chunk at a time, by the places of its jobs. If the retry
is cancelled there may be another, of what that one did not come to.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.batches.expansion import LOCK_TO_EXPAND, OPEN_LANES
from common.batches.lifecycle import FENCE, Batch, fence_params
from common.db import new_id
from common.errors import Conflict, NotFound
from common.queue.jobs import Lane, make_lanes

CHUNK_IMAGES = 8000  # of the parent, whether they failed or not


def submit(
    connection: Connection, tenant_id: UUID, parent_id: UUID, *, request_id: str | None = None
) -> tuple[UUID, bool]:
    """Insert a retry of a batch; which, and whether it is new: one that has not ended yet is found again.

    Raises NotFound; or Conflict while the batch has not ended, where nothing failed, and when its retry has ended.
    """
    mine = {"parent": parent_id, "tenant": tenant_id}
    made = connection.execute(INSERT, mine | {"batch": new_id(), "request": request_id}).scalar()
    if made:
        return made, True
    parent = connection.execute(READ_PARENT, mine).first()
    if parent is None:
        raise NotFound(f"There is no batch {parent_id}.")
    if parent.finished_at is None:
        raise Conflict(f"Batch {parent_id} {UNFINISHED[parent.cancelled_at is not None]}")
    if parent.retry_id is None:
        raise Conflict(f"Nothing of batch {parent_id} failed.")
    if parent.has_retry_ended:
        raise Conflict(f"What failed of batch {parent_id} was drawn again already, in batch {parent.retry_id}.")
    return parent.retry_id, False


def models(connection: Connection, tenant_id: UUID, parent_id: UUID) -> list[str]:
    """The models that a retry of this batch draws with."""
    return list(connection.execute(MODELS, {"parent": parent_id, "tenant": tenant_id}).scalars())


def expand(connection: Connection, batch: Batch) -> Mapping[str, int] | None:
    """Make the next heirs; how many of each model. None if somebody else was faster, or nobody wants them any more."""
    locked = connection.execute(LOCK_TO_EXPAND, fence_params(batch)).first()
    if locked is None:
        return None
    parent = connection.execute(SIZE, {"parent": batch.parent_id}).one()
    until = batch.offset + max(1, CHUNK_IMAGES * parent.jobs // max(parent.images, 1))
    failed = connection.execute(FAILED, {"parent": batch.parent_id, "start": batch.offset, "until": until}).all()
    images = Counter[UUID](row.job_id for row in failed)  # in the order of their places
    if images:
        _insert(connection, batch, failed, images, is_paused=locked.paused_at is not None)
    moved = {"until": until, "is_last": until >= parent.jobs, "jobs": len(images), "images": len(failed)}
    connection.execute(EXPANDED, fence_params(batch) | moved)
    return Counter({row.job_id: row.model for row in failed}.values())


def _insert(connection: Connection, batch: Batch, failed: Any, images: Counter[UUID], *, is_paused: bool) -> None:
    same = {"tenant": batch.tenant_id, "batch": batch.id, "tier": batch.tier.value, "request": batch.request_id}
    wanted = {
        row.lane_id: Lane(batch.tenant_id, batch.tier, row.model, row.compatibility, batch.id, is_paused)
        for row in failed
    }
    lanes = dict(zip(wanted, make_lanes(connection, wanted.values()), strict=True))
    heirs = {job_id: new_id() for job_id in images}
    jobs = {
        "heirs": list(heirs.values()),
        "parents": list(heirs),
        "places": list(range(batch.jobs, batch.jobs + len(heirs))),
        "images": list(images.values()),
    }
    connection.execute(INSERT_JOBS, same | jobs)
    rows = {
        "images": [new_id() for _ in failed],
        "jobs": [heirs[row.job_id] for row in failed],
        "lanes": [lanes[row.lane_id] for row in failed],
        "indices": [row._mapping["index"] for row in failed],
    }
    connection.execute(INSERT_IMAGES, rows)
    added = Counter(rows["lanes"])  # opened at last: until the COMMIT nobody can publish in these lanes
    connection.execute(OPEN_LANES, {"lanes": list(added), "images": list(added.values())})


UNFINISHED = (
    "has not ended; what failed of it can be drawn again once it has.",
    "was cancelled, and its jobs are still being settled; try again shortly.",
)

INSERT = text("""
    INSERT INTO batches (
        id, tenant_id, upload_id, parent_id, name, tier, plan, stop_rule, request_id, prompts, checked_at)
    SELECT :batch, tenant_id, upload_id, id, name, tier, plan, stop_rule, :request, 0, now() FROM batches
    WHERE id = :parent AND tenant_id = :tenant AND finished_at IS NOT NULL
        AND EXISTS (SELECT FROM lanes WHERE lanes.batch_id = batches.id AND lanes.failed > 0)
    ON CONFLICT (parent_id, cancelled_at) WHERE parent_id IS NOT NULL DO NOTHING
    RETURNING id
""")

READ_PARENT = text("""
    SELECT parent.finished_at, parent.cancelled_at, retry.id AS retry_id,
           retry.finished_at IS NOT NULL AS has_retry_ended
    FROM batches AS parent
    LEFT JOIN batches AS retry ON retry.parent_id = parent.id AND retry.cancelled_at IS NULL
    WHERE parent.id = :parent AND parent.tenant_id = :tenant
""")

MODELS = text("""
    SELECT DISTINCT model FROM lanes
    WHERE batch_id = :parent AND tenant_id = :tenant AND failed > 0 ORDER BY model
""")

SIZE = text("SELECT jobs, images FROM batches WHERE id = :parent")

FAILED = text("""
    SELECT images.job_id, images.index, images.lane_id, lanes.model, lanes.compatibility
    FROM (SELECT id, position FROM jobs
          WHERE batch_id = :parent AND position >= :start AND position < :until AND state = 'failed'
              AND NOT EXISTS (SELECT FROM jobs AS heir WHERE heir.parent_id = jobs.id AND heir.batch_id IS NOT NULL
                              AND heir.state <> 'cancelled')) AS job
    JOIN images ON images.job_id = job.id AND images.state = 'failed'
    JOIN lanes ON lanes.id = images.lane_id
    ORDER BY job.position, images.index
""")

INSERT_JOBS = text("""
    INSERT INTO jobs (id, tenant_id, parent_id, batch_id, position, tier, recipe, count, open, request_id)
    SELECT heir.id, :tenant, jobs.id, :batch, heir.position, cast(:tier AS tier), recipe, heir.images, heir.images,
           :request
    FROM unnest(cast(:heirs AS uuid[]), cast(:parents AS uuid[]), cast(:places AS bigint[]), cast(:images AS int[]))
        AS heir(id, parent_id, position, images)
    JOIN jobs ON jobs.id = heir.parent_id
""")

INSERT_IMAGES = text("""
    INSERT INTO images (id, job_id, lane_id, index)
    SELECT * FROM unnest(
        cast(:images AS uuid[]), cast(:jobs AS uuid[]), cast(:lanes AS bigint[]), cast(:indices AS smallint[]))
""")

EXPANDED = text(f"""
    UPDATE batches SET "offset" = :until, prompts = prompts + :jobs, jobs = jobs + :jobs, images = images + :images,
        expanded_at = CASE WHEN :is_last THEN now() END, touched_at = now()
    WHERE {FENCE}
""")
