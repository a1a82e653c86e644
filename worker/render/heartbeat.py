"""The heartbeat of a render worker: renews all its leases in one statement, reports the worker, and reads its state and
whether it is quarantined.

It has a database connection of its own, so that neither a full pool nor a slow publish costs a lease. While Postgres is
away it keeps trying; the fence decides afterwards.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import transaction
from common.enums import WorkerState
from common.errors import Unavailable
from common.failures import new_reference
from common.log import log_event
from common.queue import leases, workers
from common.queue.workers import Worker
from worker.availability import Availability
from worker.quarantine.quarantine import Quarantine
from worker.render import sentence
from worker.render.inflight import HeldLeases

CLOCK_TOLERANCE_S = 5.0
SOON_S = 1.0  # until the next heartbeat of a worker that is not ready, or while Postgres is away


class Heartbeat:
    def __init__(
        self,
        settings: Settings,
        database: Database,
        held_leases: HeldLeases,
        availability: Availability,
        describe: Callable[[], tuple[Worker, bool]],
        pause: Callable[[bool], None],
        quarantine: Quarantine,
    ) -> None:
        """`describe` returns the worker and whether it is ready; `pause` is called with whether it has to drain."""
        self._settings = settings
        self._database = database
        self._held_leases = held_leases
        self._availability = availability
        self._describe = describe
        self._pause = pause
        self._quarantine = quarantine
        self._clock_is_wrong = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: str | None = None) -> None:
        """Stop, and record that the worker has stopped. While Postgres is away the sweep does so later."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)
        worker, _ = self._describe()
        try:
            with transaction(self._database) as connection:
                workers.stop(connection, worker.id, reason or sentence("stop_requested"))
        except Unavailable:
            pass

    def beat(self) -> bool:
        """Whether this worker was ready. Raises Unavailable while Postgres is away."""
        self._renew_leases()
        worker, ready = self._describe()
        before = time.time()
        with transaction(self._database) as connection:
            reply = workers.heartbeat(connection, worker, ready=ready)
        self._compare_clocks(before, reply.now.timestamp(), time.time())
        self._pause(reply.state == WorkerState.DRAINING)
        self._quarantine.sync(self._database)
        return ready

    def _renew_leases(self) -> None:
        deferred, held = self._held_leases.deferred_releases(), self._held_leases.ids()
        if not deferred and not held:
            return
        with transaction(self._database) as connection:
            wanted = leases.renew(connection, held, self._settings.lease_s)
        self._held_leases.apply_renewal(held, wanted)
        for lease_id in deferred:
            try:
                with transaction(self._database) as connection:
                    leases.release(connection, lease_id)
            except Unavailable:
                raise
            except Exception:  # it expires, and the sweep takes its images back
                self._log_failure(lease=lease_id)
            self._held_leases.confirm_released([lease_id])

    def _compare_clocks(self, before: float, database_time: float, after: float) -> None:
        """Log once when this machine's clock is wrong. `database_time` was read between `before` and `after`.

        Leases and back-offs use the database's clock alone. But ids, log lines and the signatures of requests to the
        image store use this one: they mislead, or are refused.
        """
        skew_s = max(before - database_time, 0) + min(after - database_time, 0)
        was_wrong, self._clock_is_wrong = self._clock_is_wrong, abs(skew_s) > CLOCK_TOLERANCE_S
        if self._clock_is_wrong and not was_wrong:
            log_event("clock_skew", skew_s=round(skew_s))

    def _log_failure(self, **fields: Any) -> None:
        log_event("heartbeat_failed", exc_info=True, **fields, reference=new_reference())

    def _run(self) -> None:
        while not self._stopping.is_set():
            ready = False
            try:
                with self._availability.tracked():
                    ready = self.beat()
            except Unavailable:
                pass
            except Exception:
                self._log_failure()
            self._stopping.wait(self._settings.beat_s if ready else min(SOON_S, self._settings.beat_s))
