"""The sweep: every few seconds, in every control worker, what was lost on the way is put right.

Each step is a transaction of its own and safe in many copies at once; one that fails does not stop the others.
Leftover bytes are deleted by a thread of its own: a slow image store must not hold up a rescue. Decides nothing itself:
the statements are those of `claims`, `jobs`, `batches`, `progress`, `datasets`, `stats`, `uploads` and `workers`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from common import uploads
from common.accounts import audit
from common.batches import lifecycle as batches
from common.batches import progress
from common.broker import Broker
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.db import transaction
from common.errors import Unavailable
from common.log import log_event
from common.queue import claim as claims
from common.queue import idempotency, jobs, leases, search, stats, workers
from common.storage import Storage, upload_key
from worker.availability import Availability

BATCH_SILENCE_S = 10.0  # longer than one chunk takes
EXPORT_REST_S = 10.0  # between two looks whether a batch has come further
CLEAN_AFTER_LEASES = 4  # lease times after its end: a worker that was cut off may still have been uploading


class Sweep:
    def __init__(
        self,
        settings: Settings,
        database: Database,
        messages: Broker,
        storage: Storage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._messages = messages
        self._storage = storage
        self._clock = clock
        self._outage = Availability("database_away", "database_back")
        self._storage_outage = Availability("storage_away", "storage_back")
        self._rescued_at = clock()
        self._no_rescue_before = 0.0

    def run(self, stopping: threading.Event) -> None:
        threading.Thread(target=self._repeat, args=(stopping, self.clean), name="clean", daemon=True).start()
        self._repeat(stopping, self.once)

    def once(self) -> None:
        for step in (
            self.rescue,
            self.expire,
            self.ready,
            self.wake,
            self.advance,
            self.export,
            self.note_progress,
            self.end_batches,
            self.prune,
            self.forget,
            self.take_samples,
            self.index_prompts,
        ):
            self._attempt(step)

    def clean(self) -> None:
        self._attempt(self.delete_leftovers)
        self._attempt(self.delete_uploads)

    def rescue(self) -> None:
        """Take back the images of dead leases; not soon after a gap, for that may have stopped heartbeats too."""
        now = self._clock()
        if now - self._rescued_at > self._settings.lease_s:
            self._no_rescue_before = now + 1.5 * self._settings.lease_s
        if now < self._no_rescue_before:
            self._rescued_at = now
            return
        with self._transaction() as connection:
            rescued = leases.rescue(connection, self._settings.lease_s)
        self._rescued_at = now
        if rescued.leases:
            log_event(
                "leases_rescued", leases=len(rescued.leases), images=rescued.images, ended=len(rescued.ended_jobs)
            )
            self._messages.announce_changed(rescued.ended_jobs)

    def expire(self) -> None:
        """Fail jobs whose deadline has passed, and tell those who render them to stop."""
        with self._transaction() as connection:
            expired = jobs.expire(connection)
        if expired:
            log_event("jobs_expired", jobs=",".join(map(str, expired)))
            self._messages.announce_cancelled(expired)

    def ready(self) -> None:
        with self._transaction() as connection:
            leases.end_backoff(connection)

    def wake(self) -> None:
        with self._transaction() as connection:
            models = claims.models_with_idle_workers(connection, self._settings.beat_s)
        if [model for model in models if self._messages.wake(model)]:
            log_event("models_woken", models=",".join(models))

    def advance(self) -> None:
        """Send again for batches that nobody is at: the message, or who was at it, was lost."""
        with self._transaction() as connection:
            unattended = batches.stalled(connection, BATCH_SILENCE_S)
        for batch_id in unattended:
            self._messages.advance(batch_id)

    def export(self) -> None:
        """Send again for datasets that nobody writes; those that follow a batch are looked at again, too."""
        with self._transaction() as connection:
            unattended = datasets.unattended(connection, EXPORT_SILENCE_S, EXPORT_REST_S)
        for dataset_id in unattended:
            self._messages.export(dataset_id)

    def note_progress(self) -> None:
        """Note how far the batches are; those of which too much fails pause."""
        with self._transaction() as connection:
            found = progress.measure(connection)
        for one in found:
            with self._transaction() as connection:
                is_mine = progress.record(connection, one)
            if is_mine and one.because:
                log_event("batch_stopped", batch=one.batch_id, reason=one.because)

    def end_batches(self) -> None:
        """End batches, and have the datasets finished that have waited for it."""
        with self._transaction() as connection:
            waiting = datasets.of_batches(connection, batches.end(connection))
        for dataset_id in waiting:
            self._messages.export(dataset_id)

    def prune(self) -> None:
        silence = 3 * max(self._settings.lease_s, self._settings.beat_s)
        with self._transaction() as connection:
            pruned = workers.prune(connection, silence)
        if pruned:
            log_event("workers_pruned", workers=",".join(map(str, pruned)))

    def forget(self) -> None:
        """What has been kept for long enough."""
        with self._transaction() as connection:
            idempotency.delete_expired_keys(connection)
            audit.forget(connection, self._settings.audit_days)

    def take_samples(self) -> None:
        with self._transaction() as connection:
            stats.take_sample(connection)

    def index_prompts(self) -> None:
        with self._transaction() as connection:
            search.index_prompts(connection)

    def delete_leftovers(self) -> None:
        """Delete what dead leases may have stored and no image shows: lease by lease, so a failure costs little."""
        with self._transaction() as connection:
            leftovers = leases.orphaned_keys(connection, CLEAN_AFTER_LEASES * self._settings.lease_s)
        for lease_id, keys in leftovers.items():
            with self._storage_outage.noticed():
                self._storage.delete(keys)
            with self._transaction() as connection:
                leases.mark_cleaned(connection, [lease_id])
        if leftovers:
            log_event("leftovers_deleted", leases=len(leftovers), keys=sum(map(len, leftovers.values())))

    def delete_uploads(self) -> None:
        """Delete the uploads that nobody asks for any more. Their rows are locked while their bytes go."""
        with self._transaction() as connection:
            unused = uploads.take_unused(connection, self._settings.upload_days)
            with self._storage_outage.noticed():
                self._storage.delete(upload_key(*upload) for upload in unused)
        if unused:
            log_event("uploads_deleted", uploads=len(unused))

    def _repeat(self, stopping: threading.Event, act: Callable[[], None]) -> None:
        while not stopping.is_set():
            act()
            stopping.wait(self._settings.sweep_s * random.uniform(0.7, 1.3))  # so that copies do not march in step

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Unavailable:
            pass
        except Exception:
            log_event("sweep_failed", exc_info=True, step=step.__name__)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._outage.noticed(), transaction(self._database) as connection:
            yield connection
