"""How batches get on: the sweep notes it, and pauses those whose stop rule says so. Nothing is asked of an image.

What is noted and when a batch is to pause is `common.batches.throughput`'s. Copies of the sweep may do this at once:
each note names what it goes on from, and whoever was overtaken changes nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.batches.lifecycle import SET_LANES
from common.batches.throughput import Sample, Samples, StopRule, add_sample, stop_reason


@dataclass(frozen=True)
class Progress:
    """What is to be noted of a batch, in place of what was seen; and why it is to pause, if it is."""

    batch_id: UUID
    seen: Samples
    marks: Samples
    because: str | None


def measure(connection: Connection) -> list[Progress]:
    """What there is to note of the batches that are neither paused nor over."""
    found = [_progress(row) for row in connection.execute(MEASURE)]
    return [one for one in found if one.because or one.marks != one.seen]


def record(connection: Connection, progress: Progress) -> bool:
    """Note it, and pause the batch if it is to pause. False if somebody else was faster, or is at the batch."""
    parameters = {"batch": progress.batch_id, "because": progress.because}
    marks = {"seen": json.dumps(progress.seen), "samples": json.dumps(progress.marks)}
    is_mine = connection.execute(RECORD, parameters | marks).rowcount > 0
    if is_mine and progress.because:
        connection.execute(SET_LANES, {"batch": progress.batch_id, "closed": True})
    return is_mine


def read_samples(samples: Sequence[Sequence[Any]]) -> Samples:
    """As they stand in the row of a batch."""
    return tuple(Sample(*mark) for mark in samples)


def _progress(row: Row[Any]) -> Progress:
    seen, now = read_samples(row.progress_samples), Sample(row.at, row.ended, row.failed, row.flagged)
    rule = StopRule.model_validate(row.stop_rule) if row.stop_rule else None
    known = seen or (Sample(row.created, 0, 0, 0),)
    because = stop_reason(known, now, rule) if rule else None
    return Progress(row.id, seen, add_sample(known, now, rule), because)


MEASURE = text("""
    SELECT batches.id, progress_samples, stop_rule, counted.*,
           round(extract(epoch FROM now()), 1)::float AS at, round(extract(epoch FROM created_at), 1)::float AS created
    FROM batches CROSS JOIN LATERAL (
        SELECT coalesce(sum(stored + flagged + failed), 0)::bigint AS ended,
               coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(flagged), 0)::bigint AS flagged
        FROM lanes WHERE lanes.batch_id = batches.id) AS counted
    WHERE finished_at IS NULL AND cancelled_at IS NULL AND paused_at IS NULL
""")

RECORD = text("""
    UPDATE batches SET progress_samples = cast(:samples AS jsonb),
        paused_at = CASE WHEN cast(:because AS text) IS NOT NULL THEN now() END, paused_because = :because
    WHERE id = (SELECT id FROM batches WHERE id = :batch AND progress_samples = cast(:seen AS jsonb)
                AND paused_at IS NULL AND cancelled_at IS NULL AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED)
""")
