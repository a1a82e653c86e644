"""Batches that cannot be worked on: whose prompts cannot be rendered, or at which control workers fail again and again.

checking, expanding ──► refused: ended with an error, or cancelled if it has jobs
a failure ──► it rests ──► … ──► the last one: as if it was refused
"""

from uuid import UUID

from sqlalchemy import Connection, text

from common.batches.chunks import FENCE, Batch, fence_params
from common.batches.lifecycle import NEEDS_WORK, SET_LANES
from common.db import CODE
from common.failures import BACKOFF_S, INTERNAL_ERROR, MAX_FAILURES, MOST_COUNTED, REST, internal_error


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
