"""Unforeseen failures of background work: how often it is tried, when again, and what its owner reads in the end.

Batches and datasets count theirs in their own rows: exceptions in `failures`, and in `open_turns` the turns of control
workers that have not ended, for a process that dies says nothing. Those of the sweep and of the render loops are
counted here, in `step_failures`: by step, and by the row that a step failed at, if it was one. Knows no step; all
processes share the counts.
"""

import secrets
from typing import Any

from sqlalchemy import Connection, Row, text

from common import sentence
from common.errors import InternalError
from common.sentences import Sentence

INTERNAL_ERROR = InternalError.code
MAX_FAILURES = 5  # in a row, or dead processes: then a batch or a dataset ends
BACKOFF_S = 2.0  # after the first failure; doubled for each further one
LONGEST_REST_S = 60.0  # what has no end is tried as often at least
MOST_COUNTED = 100  # failures of a row
FORGOTTEN_S = 10 * LONGEST_REST_S  # a step that has not failed for so long fails no more


def new_reference() -> str:
    """What the owner of the work reads, and an operator searches the log for."""
    return secrets.token_hex(5)


def internal_error(reference: str) -> Sentence:
    return sentence("internal_error", reference=reference)


def rest_s(failures: int) -> float:
    """How long a step rests that has failed so many times before."""
    return min(BACKOFF_S * 2.0 ** min(failures, 20), LONGEST_REST_S)


def record(connection: Connection, step: str, subject: str, reference: str) -> None:
    """Count a failure of a step, at a row or (empty `subject`) as a whole.

    Counts nothing within the back-off: another process has counted it.
    """
    connection.execute(RECORD, {"step": step, "subject": subject, "reference": reference})


def forget(connection: Connection, step: str, subject: str) -> None:
    """The step has succeeded."""
    connection.execute(FORGET, {"step": step, "subject": subject})


def lasting(connection: Connection) -> list[Row[Any]]:
    """What has failed MAX_FAILURES times or more and fails still: (step, subject, failures, reference, since)."""
    return list(connection.execute(LASTING))


def rests(step: str, row_id: str) -> str:
    """The condition that a step failed at the row of that id lately and leaves it alone for now."""
    return f"""EXISTS (SELECT FROM step_failures AS failed WHERE failed.step = '{step}'
        AND failed.subject = cast({row_id} AS text) AND failed.retry_at > now())"""


# How long to wait, from the number of the failures before this one.
REST = f"make_interval(secs => least({LONGEST_REST_S}, :backoff * 2 ^ failures))"

# What a statement sets with which a row comes further. The turn in which it does so goes on.
PROGRESS = "failures = 0, retry_at = NULL, open_turns = 1"

# Whether the back-off of a row with the columns `failures` and `retry_at` is over.
RESTED = "(retry_at IS NULL OR retry_at <= now())"

# Count a failure of a step, at most once within its back-off. One after a long time begins a new count.
RECORD = text(f"""
    INSERT INTO step_failures AS known (step, subject, reference, retry_at)
    VALUES (:step, :subject, :reference, now() + make_interval(secs => {BACKOFF_S}))
    ON CONFLICT (step, subject) DO UPDATE SET
        failures = CASE WHEN known.failed_at < now() - interval '{FORGOTTEN_S} s' THEN 1 ELSE known.failures + 1 END,
        since = CASE WHEN known.failed_at < now() - interval '{FORGOTTEN_S} s' THEN now() ELSE known.since END,
        reference = excluded.reference, failed_at = now(),
        retry_at = now() + make_interval(secs => least({LONGEST_REST_S}, {BACKOFF_S} * 2 ^ least(known.failures, 20)))
    WHERE known.retry_at <= now()
""")

# Delete the count of a step.
FORGET = text("DELETE FROM step_failures WHERE step = :step AND subject = :subject")

# Read what keeps failing.
LASTING = text(f"""
    SELECT step, subject, failures, reference, since FROM step_failures
    WHERE failures >= {MAX_FAILURES} AND failed_at > now() - interval '{FORGOTTEN_S} s'
    ORDER BY step, subject
""")
