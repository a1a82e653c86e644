"""Batches: many jobs from one file of prompts. Pause, resume and cancel act on all of them at once, through its lanes.

    submit ──► checking ──► expanding ──► running ──► ended    its file is read twice: to check it, then to expand it
                   ├───────────┴────────────┴──► paused        and back: its lanes are closed, and opened again
                   └───────────┴────────────┴──► cancelled     its lanes are closed for good, its jobs settled in chunks

The file is read a chunk at a time. Each chunk is one transaction that moves the row's `offset` on, fenced by the offset
that it began at, so any control worker can go on where another stopped, and two at once do nothing twice. Nothing here
reads a file or sends a message; how its prompts become recipes is `plan`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from common.batches import skipped_lines
from common.batches.matrix import variants
from common.batches.plan import Plan
from common.batches.throughput import StopRule
from common.db import new_id
from common.enums import Tier
from common.errors import Conflict, NotFound
from common.queue.jobs import cancel_locked
from common.recipes.recipe import canonical_json
from common.uploads import PICTURE, Upload

SHOWN_WARNINGS = 20
SETTLE_IMAGES = 5000  # of a cancelled batch in one transaction


@dataclass(frozen=True)
class Batch:
    """What expanding a batch needs to know, as of now. `offset`, `line`: how far its file is read."""

    id: UUID
    tenant_id: UUID
    tier: Tier
    plan: Plan
    upload: Upload
    is_checked: bool
    is_expanded: bool
    is_cancelled: bool
    offset: int
    line: int
    prompts: int
    skipped: int
    jobs: int
    variants: int
    request_id: str | None
    parent_id: UUID | None = None  # of a retry; then `offset` is how far that one is looked through

    @property
    def place(self) -> int:
        """Of the next prompt in its file, as far as it is checked or expanded."""
        return self.jobs // self.variants if self.is_checked else self.prompts

    def after(self, chunk: "Chunk") -> "Batch":
        """The same, as it is once the chunk was checked or expanded."""
        there = replace(self, offset=chunk.offset, line=chunk.line)
        if self.is_checked:
            return replace(there, jobs=self.jobs + chunk.prompts * self.variants)
        return replace(there, prompts=self.prompts + chunk.prompts, skipped=self.skipped + len(chunk.skipped))


@dataclass(frozen=True)
class Chunk:
    """A part of the file: where it ends, how many prompts it has and, when it is checked, what to warn of.

    `skipped`: why which lines are no prompts of the batch.
    """

    offset: int
    line: int
    is_last: bool
    prompts: int
    warnings: Sequence[str] = ()
    skipped: Mapping[int, str] = field(default_factory=dict)


def submit(
    connection: Connection,
    tenant_id: UUID,
    upload_id: UUID,
    plan: Plan,
    *,
    tier: Tier = Tier.BULK,
    name: str = "",
    stop_rule: StopRule | None = None,
    request_id: str | None = None,
    batch_id: UUID | None = None,
) -> UUID:
    """Insert a batch, to be checked and expanded. Raises NotFound when the tenant has no such file of prompts."""
    batch_id = batch_id or new_id()
    parameters = {
        "batch": batch_id,
        "tenant": tenant_id,
        "upload": upload_id,
        "plan": canonical_json(plan.model_dump(mode="json")),
        "variants": len(variants(plan.matrix)),
        "tier": tier.value,
        "name": name,
        "stop_rule": stop_rule.model_dump_json() if stop_rule else None,
        "request": request_id,
    }
    if connection.execute(INSERT_BATCH, parameters).rowcount == 0:
        raise NotFound(f"There is no upload {upload_id} with prompts in it.")
    return batch_id


def pause(connection: Connection, batch_id: UUID, tenant_id: UUID) -> None:
    """Claim nothing more of a batch; what is being rendered is finished. Raises NotFound, or Conflict if it ended."""
    _change(connection, PAUSE, batch_id, tenant_id)
    connection.execute(SET_LANES, {"batch": batch_id, "closed": True})


def resume(connection: Connection, batch_id: UUID, tenant_id: UUID) -> list[str]:
    """Let a paused batch go on; the models that it has work for. Raises NotFound, or Conflict if it ended."""
    _change(connection, RESUME, batch_id, tenant_id)
    return list(connection.execute(SET_LANES, {"batch": batch_id, "closed": False}).scalars())


def close(connection: Connection, batch_id: UUID, tenant_id: UUID) -> None:
    """Cancel a batch, first half: nothing of it can be claimed or started from the COMMIT on.

    `cancel_active` must follow in a transaction of its own: whoever publishes now holds jobs and wants lanes.
    Raises NotFound, or Conflict if it has ended. Again is no error.
    """
    _change(connection, CLOSE, batch_id, tenant_id)
    connection.execute(SET_LANES, {"batch": batch_id, "closed": True})


def cancel_active(connection: Connection, batch_id: UUID) -> list[UUID]:
    """Cancel a batch, second half: cancel the jobs that run or are in a worker's hands; which. The others: `settle`."""
    in_hand = connection.execute(LOCK_ACTIVE, {"batch": batch_id}).scalars().all()
    return cancel_locked(connection, in_hand)


def settle(connection: Connection, batch_id: UUID) -> bool:
    """Cancel the next 5,000 images or so of a cancelled batch; True while there are more. Safe in many copies."""
    batch = connection.execute(LOCK_TO_SETTLE, {"batch": batch_id}).first()
    if batch is None:
        return False
    until = batch.settled + max(1, SETTLE_IMAGES * batch.jobs // max(batch.images, 1))
    here = {"batch": batch_id, "start": batch.settled, "until": until}
    cancel_locked(connection, connection.execute(LOCK_CHUNK, here).scalars().all())
    connection.execute(SETTLED, here)
    return bool(until < batch.jobs)


def end(connection: Connection) -> list[UUID]:
    """End the batches whose images have all ended; which."""
    return list(connection.execute(END).scalars())


def stalled(connection: Connection, silence_s: float) -> list[UUID]:
    """The batches that have to be checked, expanded or settled, and that nobody has been at for that long."""
    return list(connection.execute(STALLED, {"silence": silence_s}).scalars())


def read(connection: Connection, batch_id: UUID) -> Batch | None:
    """A batch that has not ended."""
    row = connection.execute(READ, {"batch": batch_id}).first()
    return _batch(row) if row else None


def record_checked(connection: Connection, batch: Batch, chunk: Chunk) -> bool:
    """Note that a chunk was checked; the last one begins the expansion. False if somebody else was faster."""
    is_mine = (
        connection.execute(
            CHECKED, fence_params(batch) | progress_params(chunk) | {"skipped": len(chunk.skipped)}
        ).rowcount
        > 0
    )
    if is_mine:
        skipped_lines.add(connection, batch.id, chunk.skipped)
    return is_mine


def refuse(connection: Connection, batch: Batch, code: str, message: str) -> bool:
    """End a batch, for its prompts cannot be rendered. False as above.

    What the catalogue allowed when it was checked and no longer allows now ends it in its midst: cancelled.
    """
    is_mine = connection.execute(REFUSE, fence_params(batch) | {"code": code, "message": message}).rowcount > 0
    if is_mine:
        connection.execute(SET_LANES, {"batch": batch.id, "closed": True})
    return is_mine


def _change(connection: Connection, statement: TextClause, batch_id: UUID, tenant_id: UUID) -> None:
    mine = {"batch": batch_id, "tenant": tenant_id}
    if connection.execute(statement, mine).rowcount:
        return
    state = connection.execute(STATE, mine).first()
    if state is None:
        raise NotFound(f"There is no batch {batch_id}.")
    ended = "was cancelled" if state.cancelled_at else "has ended"
    raise Conflict(f"Batch {batch_id} {ended}.")


def fence_params(batch: Batch) -> dict[str, Any]:
    """The parameters of HERE."""
    return {"batch": batch.id, "here": batch.offset, "jobs_here": batch.jobs}


def progress_params(chunk: Chunk) -> dict[str, Any]:
    """How far the file is read after this chunk."""
    return {
        "offset": chunk.offset,
        "line": chunk.line,
        "is_last": chunk.is_last,
        "prompts": chunk.prompts,
        "warned": len(chunk.warnings),
        "warnings": list(chunk.warnings[:SHOWN_WARNINGS]),
    }


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        tenant_id=row.tenant_id,
        tier=Tier(row.tier),
        plan=Plan.model_validate(row.plan),
        upload=Upload(row.upload_id, row.format, row.bytes, row.sha256, encoding=row.encoding),
        is_checked=row.checked_at is not None,
        is_expanded=row.expanded_at is not None,
        is_cancelled=row.cancelled_at is not None,
        offset=row.offset,
        line=row.line,
        prompts=row.prompts or 0,
        skipped=row.skipped,
        jobs=row.jobs,
        variants=row.variants,
        request_id=row.request_id,
        parent_id=row.parent_id,
    )


# One statement each. HERE is the fence of a chunk: whoever finds the batch further on was overtaken.

FENCE = 'id = :batch AND "offset" = :here AND jobs = :jobs_here AND cancelled_at IS NULL AND finished_at IS NULL'

INSERT_BATCH = text(f"""
    INSERT INTO batches (id, tenant_id, upload_id, name, tier, plan, variants, stop_rule, request_id)
    SELECT :batch, tenant_id, id, :name, cast(:tier AS tier), cast(:plan AS jsonb), :variants,
           cast(:stop_rule AS jsonb), :request
    FROM uploads WHERE id = :upload AND tenant_id = :tenant AND format <> '{PICTURE}'
""")

STATE = text("SELECT cancelled_at FROM batches WHERE id = :batch AND tenant_id = :tenant")

PAUSE = text("""
    UPDATE batches SET paused_at = coalesce(paused_at, now())
    WHERE id = :batch AND tenant_id = :tenant AND cancelled_at IS NULL AND finished_at IS NULL
""")

# Its pace is measured anew from here on: what made it pause is not held against it again.
RESUME = text("""
    UPDATE batches SET paused_at = NULL, paused_because = NULL,
        progress_samples = CASE WHEN paused_at IS NULL THEN progress_samples ELSE (
            SELECT jsonb_build_array(jsonb_build_array(
                round(extract(epoch FROM now()), 1), coalesce(sum(stored + flagged + failed), 0),
                coalesce(sum(failed), 0), coalesce(sum(flagged), 0)))
            FROM lanes WHERE lanes.batch_id = batches.id) END
    WHERE id = :batch AND tenant_id = :tenant AND cancelled_at IS NULL AND finished_at IS NULL
""")

CLOSE = text("""
    UPDATE batches SET cancelled_at = coalesce(cancelled_at, now()), paused_at = NULL
    WHERE id = :batch AND tenant_id = :tenant AND (finished_at IS NULL OR cancelled_at IS NOT NULL)
""")

SET_LANES = text("""
    UPDATE lanes SET closed = :closed
    WHERE id = ANY(ARRAY(SELECT id FROM lanes WHERE batch_id = :batch ORDER BY id FOR NO KEY UPDATE))
    RETURNING model
""")

# What runs, and what a lease holds that is about to start: its start may be under way, and holds the job's lock.
LOCK_ACTIVE = text("""
    WITH held AS (
        SELECT images.job_id FROM leases JOIN images ON images.id = ANY(leases.image_ids)
        WHERE leases.ended_at IS NULL AND images.lane_id = ANY(ARRAY(SELECT id FROM lanes WHERE batch_id = :batch)))
    SELECT id FROM jobs
    WHERE id = ANY(ARRAY(
        SELECT id FROM jobs WHERE batch_id = :batch AND state = 'running' UNION SELECT job_id FROM held))
    ORDER BY id FOR NO KEY UPDATE
""")

LOCK_TO_SETTLE = text("""
    SELECT settled, jobs, images FROM batches
    WHERE id = :batch AND cancelled_at IS NOT NULL AND finished_at IS NULL AND settled < jobs
    FOR NO KEY UPDATE SKIP LOCKED
""")

LOCK_CHUNK = text("""
    SELECT id FROM jobs
    WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE batch_id = :batch AND position >= :start AND position < :until))
        AND finished_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
""")

SETTLED = text("UPDATE batches SET settled = least(:until, jobs), touched_at = now() WHERE id = :batch")

END = text("""
    UPDATE batches SET finished_at = now(), paused_at = NULL
    WHERE finished_at IS NULL AND (expanded_at IS NOT NULL OR cancelled_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM lanes WHERE lanes.batch_id = batches.id AND lanes.open > 0)
    RETURNING id
""")

STALLED = text("""
    SELECT id FROM batches
    WHERE finished_at IS NULL AND touched_at < now() - make_interval(secs => :silence)
        AND CASE WHEN cancelled_at IS NULL THEN expanded_at IS NULL ELSE settled < jobs END
    ORDER BY id LIMIT 100
""")

READ = text("""
    SELECT batches.*, uploads.format, uploads.bytes, uploads.sha256, uploads.encoding
    FROM batches JOIN uploads ON uploads.id = upload_id WHERE batches.id = :batch AND finished_at IS NULL
""")

CHECKED = text(f"""
    UPDATE batches SET
        "offset" = CASE WHEN :is_last THEN 0 ELSE :offset END, line = CASE WHEN :is_last THEN 0 ELSE :line END,
        prompts = coalesce(prompts, 0) + :prompts, skipped = skipped + :skipped,
        warned = warned + :warned, warnings = (warnings || cast(:warnings AS text[]))[1 : {SHOWN_WARNINGS}],
        checked_at = CASE WHEN :is_last THEN now() END, touched_at = now()
    WHERE {FENCE} AND checked_at IS NULL
""")

REFUSE = text(f"""
    UPDATE batches SET error_code = :code, error_message = :message, paused_at = NULL,
        finished_at = CASE WHEN jobs = 0 THEN now() END, cancelled_at = CASE WHEN jobs > 0 THEN now() END
    WHERE {FENCE} AND expanded_at IS NULL
""")
