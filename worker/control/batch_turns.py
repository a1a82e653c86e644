"""The turns of this process on batches: which batch is next, for how long, and that a turn has ended.

Does no work on a batch. The statements are in `common.batches.turns`.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from common.batches import failures as batch_failures
from common.batches import turns
from common.batches.turns import Turn
from common.db import transaction
from common.errors import Unavailable
from common.failures import MAX_FAILURES, new_reference
from common.log import log_event
from worker.availability import Availability

TURN_S = 2.0  # on one batch, while a batch of another tenant waits


class BatchTurns:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._outage = Availability("database_away", "database_back")

    def take(self, batch_id: UUID) -> UUID | None:
        """Begin the turn of the batch that is next, on a message for this one. None if there is no work.

        A batch of which MAX_FAILURES processes died one after the other is given up first.
        """
        with transaction(self._database) as connection:
            turn = turns.take(connection, batch_id)
            if turn and turn.open_before >= MAX_FAILURES:
                self._give_up(connection, turn)
        return turn.batch_id if turn else None

    def clock(self, batch_id: UUID, seconds: float) -> Callable[[], bool]:
        """Returns whether the turn that begins now is over; asks for other tenants once a second."""
        began = time.monotonic()
        ask_at, has_ended = began + TURN_S, False

        def is_over() -> bool:
            nonlocal ask_at, has_ended
            now = time.monotonic()
            if not has_ended and now > ask_at:
                ask_at = now + 1
                with transaction(self._database) as connection:
                    has_ended = turns.another_tenant_waits(connection, batch_id)
            return has_ended or now - began > seconds

        return is_over

    def end(self, batch_id: UUID, is_leaving: Callable[[], bool]) -> None:
        """Record that the turn has ended. While Postgres is away it waits until this process is asked to end: otherwise
        some outages would look like as many dead processes.
        """

        def end() -> None:
            with transaction(self._database) as connection:
                turns.end(connection, batch_id)

        with suppress(Unavailable):
            self._outage.retry(end, is_leaving)

    def _give_up(self, connection: Connection, turn: Turn) -> None:
        reference = new_reference()
        log_event("batch_lost_workers", batch=turn.batch_id, workers=turn.open_before, reference=reference)
        batch_failures.give_up(connection, turn.batch_id, reference)
