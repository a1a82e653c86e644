"""The heartbeat of a render worker: renews all its leases in one statement, says that it lives, hears what is asked.

It has a database connection of its own, so that no full pool and no slow publish can cost a lease; while Postgres is
away it goes on trying, and the fence decides afterwards.
"""

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import transaction
from common.enums import WorkerState
from common.errors import Unavailable
from common.log import log_event
from common.queue import leases, workers
from common.queue.workers import Worker
from worker.availability import Availability
from worker.render.inflight import HeldLeases

TOLERANCE_S = 5.0  # between this machine's clock and the database's
SOON_S = 1.0  # until the next beat of a worker that is not ready, or that Postgres did not hear


class Heartbeat:
    def __init__(
        self,
        settings: Settings,
        database: Database,
        holdings: HeldLeases,
        outage: Availability,
        introduce: Callable[[], tuple[Worker, bool]],
        pause: Callable[[bool], None],
    ) -> None:
        """`introduce` says what this worker is now, and whether it is ready; `pause` hears whether it is to drain."""
        self._settings = settings
        self._database = database
        self._holdings = holdings
        self._outage = outage
        self._introduce = introduce
        self._pause = pause
        self._clock_is_wrong = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: str = "it was told to stop") -> None:
        """Stop, and say goodbye if Postgres hears it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)
        worker, _ = self._introduce()
        try:
            with transaction(self._database) as connection:
                workers.stop(connection, worker.id, reason)
        except Unavailable:
            pass  # the sweep will notice its silence

    def beat(self) -> bool:
        """Whether this worker was ready. Raises Unavailable while Postgres is away."""
        abandoned, held_ids = self._holdings.abandoned(), self._holdings.leases()
        if abandoned or held_ids:
            for lease_id in abandoned:
                with transaction(self._database) as connection:
                    leases.release(connection, lease_id)
            with transaction(self._database) as connection:
                held = leases.renew(connection, held_ids, self._settings.lease_s)
            self._holdings.given_back(abandoned)
            self._holdings.renewed(held_ids, held)
        worker, ready = self._introduce()
        before = time.time()
        with transaction(self._database) as connection:
            heard = workers.heartbeat(connection, worker, ready=ready)
        self._compare_clocks(before, heard.now.timestamp(), time.time())
        self._pause(heard.state == WorkerState.DRAINING)
        return ready

    def _compare_clocks(self, before: float, database_time: float, after: float) -> None:
        """Log once when this machine's clock is wrong. `database_time` was read between `before` and `after`.

        Leases and back-offs use the database's clock alone. But ids, log lines and the signatures of requests to the
        image store use this one: they mislead, or are refused.
        """
        skew_s = max(before - database_time, 0) + min(after - database_time, 0)
        was_wrong, self._clock_is_wrong = self._clock_is_wrong, abs(skew_s) > TOLERANCE_S
        if self._clock_is_wrong and not was_wrong:
            log_event("clock_skew", skew_s=round(skew_s))

    def _run(self) -> None:
        while not self._stopping.is_set():
            ready = False
            try:
                with self._outage.noticed():
                    ready = self.beat()
            except Unavailable:
                pass
            except Exception:
                log_event("beat_failed", exc_info=True)
            self._stopping.wait(self._settings.beat_s if ready else min(SOON_S, self._settings.beat_s))
