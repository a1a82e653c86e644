"""The progress of batches: the sweep samples it, and pauses the batches whose stop rule says so. Reads no images.

`common.batches.throughput` decides what is sampled and when a batch pauses. Copies of the sweep may run this at once:
each update names the samples that it replaces, so an overtaken one changes nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.batches.lifecycle import SET_LANES
from common.batches.throughput import Sample, Samples, StopRule, add_sample, stop_reason
from common.failures import rests
from common.queue.lanes import EXACT


@dataclass(frozen=True)
class Progress:
    """The new samples of a batch in place of the `previous` ones, and why it must pause, if it must."""

    batch_id: UUID
    previous: Samples
    samples: Samples
    stop_reason: str | None


def count(connection: Connection) -> Sequence[Row[Any]]:
    """How many images have ended of each batch that is not paused and has not ended: for `measure`."""
    return connection.execute(COUNT).all()


def measure(counted: Row[Any]) -> Progress | None:
    """The progress to record of a batch, if there is any."""
    previous = read_samples(counted.progress_samples)
    now = Sample(counted.at, counted.ended, counted.failed, counted.flagged)
    rule = StopRule.model_validate(counted.stop_rule, extra="ignore") if counted.stop_rule else None
    known = previous or (Sample(counted.created, 0, 0, 0),)
    reason = stop_reason(known, now, rule) if rule else None
    progress = Progress(counted.id, previous, add_sample(known, now, rule), reason)
    return progress if reason or progress.samples != previous else None


def record(connection: Connection, progress: Progress) -> bool:
    """Record the progress, and pause the batch if it must. False if another sweep was first or the batch is locked."""
    samples = {"previous": json.dumps(progress.previous), "samples": json.dumps(progress.samples)}
    parameters = {"batch": progress.batch_id, "reason": progress.stop_reason}
    is_first = connection.execute(RECORD, parameters | samples).rowcount > 0
    if is_first and progress.stop_reason:
        connection.execute(SET_LANES, {"batch": progress.batch_id, "closed": True})
    return is_first


def read_samples(stored: Sequence[Sequence[Any]]) -> Samples:
    """The samples in the row of a batch."""
    return tuple(Sample(*sample[: len(Sample._fields)]) for sample in stored)  # newer code may add to the end


# Count the ended images of each batch that may render, by the counters of its lanes.
COUNT = text(f"""
    SELECT batches.id, progress_samples, stop_rule, counted.*,
           round(extract(epoch FROM now()), 1)::float AS at, round(extract(epoch FROM created_at), 1)::float AS created
    FROM batches CROSS JOIN LATERAL (
        SELECT coalesce(sum(stored + flagged + failed), 0)::bigint AS ended,
               coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(flagged), 0)::bigint AS flagged
        FROM {EXACT} AS lanes WHERE lanes.batch_id = batches.id) AS counted
    WHERE finished_at IS NULL AND cancelled_at IS NULL AND paused_at IS NULL
        AND NOT {rests("note_progress", "batches.id")}
""")

# Replace the samples of a batch, and pause it if there is a reason.
RECORD = text("""
    UPDATE batches SET progress_samples = cast(:samples AS jsonb),
        paused_at = CASE WHEN cast(:reason AS text) IS NOT NULL THEN now() END, paused_because = :reason
    WHERE id = (SELECT id FROM batches WHERE id = :batch AND progress_samples = cast(:previous AS jsonb)
                AND paused_at IS NULL AND cancelled_at IS NULL AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED)
""")
