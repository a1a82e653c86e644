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
from common.queue.workers import HeartbeatReply, Worker
from worker.availability import Availability
from worker.render.clock import Clock
from worker.render.inflight import HeldLeases

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
        self._clock = Clock()
        self._complaint: str | None = None  # for which this worker drains, of its own accord
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
        self._clock.compare(before, heard.now.timestamp(), time.time())
        self._pause(heard.state == WorkerState.DRAINING or self._clock.is_wrong)
        self._answer_for_the_clock(worker, heard)
        return ready

    def _answer_for_the_clock(self, worker: Worker, heard: HeartbeatReply) -> None:
        """Drain while the clock is wrong. Go on when it is right again, unless it is somebody else's drain by then."""
        if self._clock.is_wrong and heard.state != WorkerState.DRAINING:
            self._complaint = self._clock.complaint()
            with transaction(self._database) as connection:
                workers.drain(connection, worker.id, self._complaint)
            log_event("clock_wrong", worker=worker.id, off_s=self._clock.off_s)
        elif self._complaint and self._clock.is_right_again:
            if heard.reason == self._complaint:
                with transaction(self._database) as connection:
                    workers.resume(connection, worker.id)
            self._complaint = None
            log_event("clock_right", worker=worker.id)

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
