"""Batches: many jobs from one file of prompts. Pause, resume and cancel act on all of them at once, through the lanes.

    submit ──► checking ──► expanding ──► running ──► ended    the file is read twice: to check it, then to expand it
                   ├───────────┴────────────┴──► paused        and back: its lanes are closed, and opened again
                   └───────────┴────────────┴──► cancelled     its lanes are closed for good, its jobs settled in chunks

Reads no file and sends no message: `common.batches.chunks` records how far the file is read, and
`common.batches.plan` makes recipes of it.
"""

from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from common.accounts.admission import UNLIMITED, admit_batch
from common.accounts.limits import Limits
from common.batches import sentence
from common.batches.chunks import FENCE, UNDERSTOOD, Batch, fence_params
from common.batches.matrix import variants
from common.batches.plan import Plan
from common.batches.throughput import StopRule
from common.db import CODE, new_id
from common.enums import Tier
from common.errors import Conflict, NotFound
from common.failures import (
    BACKOFF_S,
    INTERNAL_ERROR,
    MAX_FAILURES,
    MOST_COUNTED,
    PROGRESS,
    REST,
    RESTED,
    internal_error,
)
from common.queue.jobs import cancel_locked
from common.queue.lanes import EXACT
from common.recipes.recipe import canonical_json
from common.uploads import PICTURE

SETTLE_IMAGES = 5000  # of a cancelled batch in one transaction
SILENT_S = 60.0  # a process that works on a batch leaves it untouched for less


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
    images: int | None = None,
    limits: Limits = UNLIMITED,
    key_id: UUID | None = None,
) -> UUID:
    """Insert a batch and return its id. `images`: that it will have, if that is known. `key_id`: who submits it.

    Raises NotFound if the tenant has no such file of prompts, and LimitReached.
    """
    admit_batch(connection, tenant_id, limits, tier, images or 0)
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
        "key": key_id,
        "needs_code": plan.needs_code,
        "expected": images,
    }
    if connection.execute(INSERT_BATCH, parameters).rowcount == 0:
        raise NotFound(sentence("upload_unknown", upload=upload_id))
    return batch_id


def pause(connection: Connection, batch_id: UUID, tenant_id: UUID) -> None:
    """Stop claims of a batch; running images are finished. Raises NotFound, or Conflict if it has ended."""
    _change(connection, PAUSE, batch_id, tenant_id)
    connection.execute(SET_LANES, {"batch": batch_id, "closed": True})


def resume(connection: Connection, batch_id: UUID, tenant_id: UUID) -> list[str]:
    """Reopen the lanes of a paused batch; returns their models. Raises NotFound, or Conflict if it has ended."""
    _change(connection, RESUME, batch_id, tenant_id)
    return list(connection.execute(SET_LANES, {"batch": batch_id, "closed": False}).scalars())


def close(connection: Connection, batch_id: UUID, tenant_id: UUID) -> None:
    """The first half of a cancel: after the COMMIT no image of the batch can be claimed or started.

    `cancel_active` must follow in another transaction: jobs are locked before lanes. Raises NotFound, or
    Conflict if the batch has ended; a batch that is already cancelled is no error.
    """
    _change(connection, CLOSE, batch_id, tenant_id)
    connection.execute(SET_LANES, {"batch": batch_id, "closed": True})


def cancel_active(connection: Connection, batch_id: UUID) -> list[UUID]:
    """The second half of a cancel: cancels the jobs that run or are leased, and returns them. The rest: `settle`."""
    active = connection.execute(LOCK_ACTIVE, {"batch": batch_id}).scalars().all()
    return cancel_locked(connection, active)


def settle(connection: Connection, batch_id: UUID) -> bool:
    """Cancel the next SETTLE_IMAGES or so of a cancelled batch; True while there are more. Safe in many copies."""
    batch = connection.execute(LOCK_TO_SETTLE, {"batch": batch_id}).first()
    if batch is None:
        return False
    until = batch.settled + max(1, SETTLE_IMAGES * batch.jobs // max(batch.images, 1))
    chunk = {"batch": batch_id, "start": batch.settled, "until": until}
    cancel_locked(connection, connection.execute(LOCK_CHUNK, chunk).scalars().all())
    connection.execute(SETTLED, chunk)
    return bool(until < batch.jobs)


def end(connection: Connection) -> list[UUID]:
    """End the batches whose lanes have counted the end of all images, and return them."""
    return list(connection.execute(END).scalars())


def stalled(connection: Connection, silence_s: float) -> list[UUID]:
    """The batches to check, expand or settle that no control worker has touched for so many seconds.

    Without those that need newer code.
    """
    return list(connection.execute(STALLED, {"silence": silence_s, "code": CODE}).scalars())


def refuse(connection: Connection, batch: Batch, code: str, message: str) -> bool:
    """End a batch whose prompts cannot be rendered. False if another worker was first.

    A batch that already has jobs is cancelled: the catalogue has changed since the check, or the file is lost.
    """
    is_first = connection.execute(REFUSE, fence_params(batch) | {"code": code, "message": message}).rowcount > 0
    if is_first:
        connection.execute(SET_LANES, {"batch": batch.id, "closed": True})
    return is_first


def count_failure(connection: Connection, batch_id: UUID, reference: str, backoff_s: float = BACKOFF_S) -> bool:
    """Count an unforeseen failure; True if that was the last one and has ended the batch with an error, as `refuse`
    does.

    A batch that was cancelled before gets the error too, but goes on to be settled after a rest, however often that
    fails: its jobs must end. Counts once within the back-off, and nothing when no work is left: another worker was
    faster, or failed as well.
    """
    return _count_failure(connection, batch_id, reference, backoff_s, MAX_FAILURES)


def give_up(connection: Connection, batch_id: UUID, reference: str) -> bool:
    """What `count_failure` does at the last failure, for a batch at which processes died: they counted none."""
    return _count_failure(connection, batch_id, reference, BACKOFF_S, 1)


def _count_failure(connection: Connection, batch_id: UUID, reference: str, backoff_s: float, most: int) -> bool:
    ends = {"most": most, "error": INTERNAL_ERROR, "code": CODE, "message": internal_error(reference)}
    has_new_error = connection.execute(COUNT_FAILURE, ends | {"batch": batch_id, "backoff": backoff_s}).scalar()
    if has_new_error:
        connection.execute(SET_LANES, {"batch": batch_id, "closed": True})
    return bool(has_new_error)


def _change(connection: Connection, statement: TextClause, batch_id: UUID, tenant_id: UUID) -> None:
    named = {"batch": batch_id, "tenant": tenant_id}
    if connection.execute(statement, named).rowcount:
        return
    state = connection.execute(STATE, named).first()
    if state is None:
        raise NotFound(sentence("batch_unknown", batch=batch_id))
    if state.cancelled_at:
        raise Conflict(sentence("batch_cancelled", batch=batch_id))
    raise Conflict(sentence("batch_ended", batch=batch_id))


# The least CODE that reads a file. The first one read GB18030 in CSV only, and a Parquet file as it was uploaded.
FILE_NEEDS_CODE = """
    CASE WHEN format = 'parquet' OR coalesce(encoding, 'utf-8') = 'utf-8' AND format IN ('txt', 'jsonl', 'csv')
        OR encoding = 'gb18030' AND format = 'csv' THEN 1 ELSE 9 END
"""

# Insert a batch, if the upload is of the tenant and has prompts.
INSERT_BATCH = text(f"""
    INSERT INTO batches (
        id, tenant_id, upload_id, name, tier, plan, variants, stop_rule, request_id, key_id, needs_code,
        expected)
    SELECT :batch, tenant_id, id, :name, cast(:tier AS tier), cast(:plan AS jsonb), :variants,
           cast(:stop_rule AS jsonb), :request, :key, greatest(:needs_code, {FILE_NEEDS_CODE}),
           cast(:expected AS bigint)
    FROM uploads WHERE id = :upload AND tenant_id = :tenant AND format <> '{PICTURE}'
""")

# Read whether a batch of a tenant is there, and cancelled.
STATE = text("""
    SELECT cancelled_at FROM batches WHERE id = :batch AND tenant_id = :tenant AND deleted_at IS NULL
""")

# Pause a batch that has not ended.
PAUSE = text("""
    UPDATE batches SET paused_at = coalesce(paused_at, now())
    WHERE id = :batch AND tenant_id = :tenant AND cancelled_at IS NULL AND finished_at IS NULL AND deleted_at IS NULL
""")

# Resume a batch. One that was paused gets one new sample, so that old failures do not pause it again.
RESUME = text(f"""
    UPDATE batches SET paused_at = NULL, paused_because = NULL,
        progress_samples = CASE WHEN paused_at IS NULL THEN progress_samples ELSE (
            SELECT jsonb_build_array(jsonb_build_array(
                round(extract(epoch FROM now()), 1), coalesce(sum(stored + flagged + failed), 0),
                coalesce(sum(failed), 0), coalesce(sum(flagged), 0)))
            FROM {EXACT} AS lanes WHERE lanes.batch_id = batches.id) END
    WHERE id = :batch AND tenant_id = :tenant AND cancelled_at IS NULL AND finished_at IS NULL AND deleted_at IS NULL
""")

# Cancel a batch that has not ended.
CLOSE = text("""
    UPDATE batches SET cancelled_at = coalesce(cancelled_at, now()), paused_at = NULL
    WHERE id = :batch AND tenant_id = :tenant AND (finished_at IS NULL OR cancelled_at IS NOT NULL)
        AND deleted_at IS NULL
""")

# Close or open the lanes of a batch.
SET_LANES = text("""
    UPDATE lanes SET closed = :closed
    WHERE id = ANY(ARRAY(SELECT id FROM lanes WHERE batch_id = :batch ORDER BY id FOR NO KEY UPDATE))
    RETURNING model
""")

# Lock the jobs of a batch that run, and those with leased images, which may be about to start.
LOCK_ACTIVE = text("""
    WITH held AS (
        SELECT images.job_id FROM leases JOIN images ON images.id = ANY(leases.image_ids)
        WHERE leases.ended_at IS NULL AND images.lane_id = ANY(ARRAY(SELECT id FROM lanes WHERE batch_id = :batch)))
    SELECT id FROM jobs
    WHERE id = ANY(ARRAY(
        SELECT id FROM jobs WHERE batch_id = :batch AND state = 'running' UNION SELECT job_id FROM held))
    ORDER BY id FOR NO KEY UPDATE
""")

# Lock a cancelled batch that is not settled; skip it if another worker has it.
LOCK_TO_SETTLE = text("""
    SELECT settled, jobs, images FROM batches
    WHERE id = :batch AND cancelled_at IS NOT NULL AND finished_at IS NULL AND settled < jobs
    FOR NO KEY UPDATE SKIP LOCKED
""")

# Lock the jobs of a chunk that have not ended.
LOCK_CHUNK = text("""
    SELECT id FROM jobs
    WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE batch_id = :batch AND position >= :start AND position < :until))
        AND finished_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
""")

# Move a cancelled batch behind a settled chunk.
SETTLED = text(f"""
    UPDATE batches SET settled = least(:until, jobs), touched_at = now(), {PROGRESS}
    WHERE id = :batch
""")

# End the batches that are expanded or cancelled and have no open images.
END = text("""
    UPDATE batches SET finished_at = now(), paused_at = NULL
    WHERE finished_at IS NULL AND (expanded_at IS NOT NULL OR cancelled_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM lanes WHERE lanes.batch_id = batches.id AND lanes.open > 0)
    RETURNING id
""")

# Whether a batch needs a control worker of this code, and its back-off is over.
NEEDS_WORK = f"""
    finished_at IS NULL AND {UNDERSTOOD} AND {RESTED}
    AND CASE WHEN cancelled_at IS NULL THEN expanded_at IS NULL ELSE settled < jobs END
"""

# Whether a turn of it may begin: when many are open, only once it is sure that their processes have died.
HAS_WORK = f"""
    {NEEDS_WORK} AND (open_turns < {MAX_FAILURES} OR touched_at < now() - interval '{SILENT_S} s')
"""

# Find the batches that need a control worker.
STALLED = text(f"""
    SELECT id FROM batches WHERE {HAS_WORK} AND touched_at < now() - make_interval(secs => :silence)
    ORDER BY id LIMIT 100
""")

# Count a failure. The last one ends the batch with an error; one that has jobs to settle is cancelled, and counts anew.
# A cancelled batch has no last one: it gets the error, and is settled after a rest.
COUNT_FAILURE = text(f"""
    UPDATE batches SET failures = CASE WHEN is_last AND NOT settles THEN 0 ELSE least(failures + 1, {MOST_COUNTED}) END,
        retry_at = CASE WHEN NOT is_last OR settles THEN now() + {REST} END, touched_at = now(),
        error_code = CASE WHEN is_last THEN :error ELSE error_code END,
        error_message = CASE WHEN is_last THEN :message ELSE error_message END,
        paused_at = CASE WHEN NOT is_last THEN paused_at END,
        finished_at = CASE WHEN is_last AND jobs = 0 THEN now() END,
        cancelled_at = CASE WHEN is_last AND jobs > 0 THEN coalesce(cancelled_at, now()) ELSE cancelled_at END
    FROM (SELECT failures + 1 >= :most AS is_last, cancelled_at IS NOT NULL AS settles,
            error_code IS DISTINCT FROM :error AS has_new_error
        FROM batches WHERE id = :batch FOR NO KEY UPDATE) AS locked
    WHERE id = :batch AND {NEEDS_WORK}
    RETURNING is_last AND has_new_error
""")

# End a batch with an error; one that has jobs is cancelled.
REFUSE = text(f"""
    UPDATE batches SET error_code = :code, error_message = :message, paused_at = NULL,
        finished_at = CASE WHEN jobs = 0 THEN now() END, cancelled_at = CASE WHEN jobs > 0 THEN now() END
    WHERE {FENCE} AND expanded_at IS NULL
""")
