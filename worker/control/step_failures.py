"""What the sweep does when a step fails for an unforeseen reason: log it with a reference, count it, and go on.

A step rests after it failed as a whole, and leaves a row alone for a while at which it failed: `common.failures` says
how long.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Engine as Database

from common import failures
from common.db import transaction
from common.errors import Unavailable
from common.log import log_event

T = TypeVar("T")
R = TypeVar("R")

MAX_ROWS = 10  # at which a step fails in one sweep: then the cause is hardly in the rows


class StepFailures:
    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._counts: dict[tuple[str, str], int] = {}  # of this process
        self._rests: dict[str, float] = {}  # by step: when this process tries it again

    def attempt(self, step: str, act: Callable[[], object]) -> None:
        """Do a step, unless it rests. Raises nothing: what is unavailable is tried again by the next sweep."""
        if self._clock() < self._rests.get(step, 0.0):
            return
        with suppress(Unavailable):
            self._counted(step, "", act)

    def each(self, step: str, rows: Mapping[UUID, T], act: Callable[[T], R]) -> list[R]:
        """What `act` returns for each of these rows, by id, at which it does not fail. Raises Unavailable."""
        done, failed = list[R](), 0
        for row_id, row in rows.items():
            results = self._counted(step, str(row_id), lambda row=row: act(row))  # type: ignore[misc]
            done += results
            failed += not results
            if failed == MAX_ROWS:
                break
        return done

    def forget(self, step: str, subjects: Iterable[object]) -> None:
        """The step has succeeded, at these rows."""
        for subject in map(str, subjects):
            if self._counts.pop((step, subject), 0):
                with suppress(Exception), transaction(self._database) as connection:  # it is forgotten later
                    failures.forget(connection, step, subject)

    def _counted(self, step: str, subject: str, act: Callable[[], R]) -> list[R]:
        """What `act` returns; nothing when it fails for an unforeseen reason, which is counted. Raises Unavailable."""
        try:
            result = act()
        except Unavailable:
            raise
        except Exception:
            self._count(step, subject)
            return []
        self.forget(step, [subject])
        return [result]

    def _count(self, step: str, subject: str) -> None:
        reference, before = failures.new_reference(), self._counts.get((step, subject), 0)
        self._counts[step, subject] = before + 1
        fields: dict[str, Any] = {"row": subject} if subject else {}
        log_event("sweep_failed", exc_info=True, step=step, **fields, reference=reference)
        if not subject:
            self._rests[step] = self._clock() + failures.rest_s(before)
        with suppress(Exception), transaction(self._database) as connection:  # the log has it
            failures.record(connection, step, subject, reference)
