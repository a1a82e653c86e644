"""The sweep: every few seconds, each control worker repairs what was lost.

Each step is a transaction of its own and safe in many copies at once; a step that fails does not stop the others. A
second thread deletes leftover bytes, so that a slow image store does not delay a rescue. Decides nothing: the
statements are in `common.queue`, `common.batches`, `common.datasets`, `common.accounts` and `common.uploads`.
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

BATCH_SILENCE_S = 10.0  # longer than a chunk takes
EXPORT_REST_S = 10.0  # between two checks whether the batch of a dataset has progressed
CLEAN_AFTER_LEASES = 4  # lease times after its end; a worker that lost its connection may upload until then


class Sweep:
    def __init__(
        self,
        settings: Settings,
        database: Database,
        broker: Broker,
        storage: Storage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._broker = broker
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
            self.end_backoff,
            self.wake,
            self.advance,
            self.export,
            self.note_progress,
            self.end_batches,
            self.prune,
            self.delete_expired,
            self.take_samples,
            self.index_prompts,
        ):
            self._attempt(step)

    def clean(self) -> None:
        self._attempt(self.delete_leftovers)
        self._attempt(self.delete_uploads)

    def rescue(self) -> None:
        """Take back the images of expired leases, but not soon after a gap of this process.

        What stopped this process may have stopped the workers' heartbeats as well.
        """
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
            self._broker.announce_changed(rescued.ended_jobs)

    def expire(self) -> None:
        """Fail the jobs whose deadline has passed, and announce it to the workers that render them."""
        with self._transaction() as connection:
            expired = jobs.expire(connection)
        if expired:
            log_event("jobs_expired", jobs=",".join(map(str, expired)))
            self._broker.announce_cancelled(expired)

    def end_backoff(self) -> None:
        """Make images claimable again whose time to wait is over."""
        with self._transaction() as connection:
            leases.end_backoff(connection)

    def wake(self) -> None:
        """Send a message for each model that has waiting images and an idle worker."""
        with self._transaction() as connection:
            models = claims.models_with_idle_workers(connection, self._settings.beat_s)
        if [model for model in models if self._broker.wake(model)]:
            log_event("models_woken", models=",".join(models))

    def advance(self) -> None:
        """Send a message for each batch that no worker processes: its message, or its worker, was lost."""
        with self._transaction() as connection:
            stalled = batches.stalled(connection, BATCH_SILENCE_S)
        for batch_id in stalled:
            self._broker.advance(batch_id)

    def export(self) -> None:
        """Send a message for each dataset that no worker writes, also when it waits for its batch."""
        with self._transaction() as connection:
            due = datasets.due(connection, EXPORT_SILENCE_S, EXPORT_REST_S)
        for dataset_id in due:
            self._broker.export(dataset_id)

    def note_progress(self) -> None:
        """Record the progress of the batches, and pause those whose stop rule applies."""
        with self._transaction() as connection:
            found = progress.measure(connection)
        for one in found:
            with self._transaction() as connection:
                is_first = progress.record(connection, one)
            if is_first and one.because:
                log_event("batch_stopped", batch=one.batch_id, reason=one.because)

    def end_batches(self) -> None:
        """End the batches whose jobs have ended, and send a message for each dataset that waited for one."""
        with self._transaction() as connection:
            waiting = datasets.unfinished_of(connection, batches.end(connection))
        for dataset_id in waiting:
            self._broker.export(dataset_id)

    def prune(self) -> None:
        """Mark workers as stopped that have stopped reporting, and delete those that stopped long ago."""
        silence = 3 * max(self._settings.lease_s, self._settings.beat_s)
        with self._transaction() as connection:
            pruned = workers.prune(connection, silence)
        if pruned:
            log_event("workers_pruned", workers=",".join(map(str, pruned)))

    def delete_expired(self) -> None:
        """Delete idempotency keys and audit records that are old enough."""
        with self._transaction() as connection:
            idempotency.delete_expired_keys(connection)
            audit.delete_old(connection, self._settings.audit_days)

    def take_samples(self) -> None:
        """Once a minute, copy the counters of the lanes for the charts."""
        with self._transaction() as connection:
            stats.take_sample(connection)

    def index_prompts(self) -> None:
        """Flush the pending list of the prompts' GIN index, so that no job update has to."""
        with self._transaction() as connection:
            search.index_prompts(connection)

    def delete_leftovers(self) -> None:
        """Delete the objects that expired leases may have stored and no image uses, lease by lease."""
        with self._transaction() as connection:
            leftovers = leases.orphaned_keys(connection, CLEAN_AFTER_LEASES * self._settings.lease_s)
        for lease_id, keys in leftovers.items():
            with self._storage_outage.tracked():
                self._storage.delete(keys)
            with self._transaction() as connection:
                leases.mark_cleaned(connection, [lease_id])
        if leftovers:
            log_event("leftovers_deleted", leases=len(leftovers), keys=sum(map(len, leftovers.values())))

    def delete_uploads(self) -> None:
        """Delete the uploads that nothing has used for a while. Their rows are locked until their bytes are deleted."""
        with self._transaction() as connection:
            unused = uploads.take_unused(connection, self._settings.upload_days)
            with self._storage_outage.tracked():
                self._storage.delete(upload_key(*upload) for upload in unused)
        if unused:
            log_event("uploads_deleted", uploads=len(unused))

    def _repeat(self, stopping: threading.Event, act: Callable[[], None]) -> None:
        while not stopping.is_set():
            act()
            stopping.wait(
                self._settings.sweep_s * random.uniform(0.7, 1.3)
            )  # so that control workers do not run it at the same time

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Unavailable:
            pass
        except Exception:
            log_event("sweep_failed", exc_info=True, step=step.__name__)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._outage.tracked(), transaction(self._database) as connection:
            yield connection
