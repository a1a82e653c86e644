"""The sweep: every few seconds, in every control worker, what was lost on the way is put right.

Each step is a transaction of its own and safe in many copies at once; one that fails does not stop the others.
Decides nothing itself: the statements are those of `claims`, `workers` and `jobs`.
"""

import random
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine as Database

from common import claims, jobs, workers
from common.config import Settings
from common.db import transaction
from common.errors import Unavailable
from common.queue import Messages
from common.telemetry import tell
from worker.outage import Outage


class Sweep:
    def __init__(
        self, settings: Settings, database: Database, messages: Messages, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._database = database
        self._messages = messages
        self._clock = clock
        self._outage = Outage("database_away", "database_back")
        self._rescued_at = clock()
        self._no_rescue_before = 0.0

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.once()
            stopping.wait(self._settings.sweep_s * random.uniform(0.7, 1.3))  # so that copies do not march in step

    def once(self) -> None:
        for step in (self.rescue, self.ready, self.wake, self.prune, self.forget_keys):
            try:
                with self._outage.noticed():
                    step()
            except Unavailable:
                continue
            except Exception:
                tell("sweep_failed", exc_info=True, step=step.__name__)

    def rescue(self) -> None:
        """Take back the images of dead leases; not soon after a gap, for that may have stopped heartbeats too."""
        now = self._clock()
        if now - self._rescued_at > self._settings.lease_s:
            self._no_rescue_before = now + 1.5 * self._settings.lease_s
        if now < self._no_rescue_before:
            self._rescued_at = now
            return
        with transaction(self._database) as connection:
            rescued = claims.rescue(connection, self._settings.lease_s)
        self._rescued_at = now
        if rescued.leases:
            tell("leases_rescued", leases=len(rescued.leases), images=rescued.images, ended=len(rescued.ended_jobs))
            self._messages.announce_ended(rescued.ended_jobs)

    def ready(self) -> None:
        with transaction(self._database) as connection:
            claims.ready(connection)

    def wake(self) -> None:
        with transaction(self._database) as connection:
            models = claims.models_with_idle_workers(connection, self._settings.beat_s)
        if [model for model in models if self._messages.wake(model)]:
            tell("models_woken", models=",".join(models))

    def prune(self) -> None:
        silence = 3 * max(self._settings.lease_s, self._settings.beat_s)
        with transaction(self._database) as connection:
            pruned = workers.prune(connection, silence)
        if pruned:
            tell("workers_pruned", workers=",".join(map(str, pruned)))

    def forget_keys(self) -> None:
        with transaction(self._database) as connection:
            jobs.forget_old_keys(connection)
