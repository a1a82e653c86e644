"""The sweep: every few seconds, each control worker repairs what was lost.

Each step is a transaction of its own and safe in many copies at once; a step that fails does not stop the others, and
a row at which a step fails does not stop the other rows: `step_failures` counts both. A second thread deletes leftover
bytes, and a third what was deleted (`deleter`), so that a slow image store does not delay a rescue. Decides nothing:
the statements are in `common.queue`, `common.batches`, `common.datasets`, `common.accounts`,
`common.maintenance`, `common.uploads` and `common.usage`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row
from sqlalchemy import Engine as Database

from common import uploads
from common.accounts import stored_bytes
from common.batches import lifecycle as batches
from common.batches import progress
from common.broker import Broker
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.db import transaction
from common.errors import Unavailable
from common.log import log_event
from common.maintenance import pruning
from common.queue import claim as claims
from common.queue import jobs, lanes, leases, orphans, search, stats, workers
from common.storage import Storage, upload_key
from common.usage import ledger
from worker.availability import Availability
from worker.control.deleter import CLEAN_AFTER_LEASES, Deleter
from worker.control.step_failures import StepFailures

T = TypeVar("T")

BATCH_SILENCE_S = 10.0  # longer than a chunk takes
EXPORT_REST_S = 10.0  # between two checks whether the batch of a dataset has progressed
PRUNE_S = 60.0  # from one pruning to the next
PRUNE_STEPS = 20  # of one table in one pruning: others of the sweep wait meanwhile


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
        self._failures = StepFailures(database, clock)
        self._deleter = Deleter(settings, database, storage)
        self._rescued_at = clock()
        self._no_rescue_before = 0.0
        self._no_pruning_before = 0.0

    def run(self, stopping: threading.Event) -> None:
        for act in (self.clean, self.delete):
            threading.Thread(target=self._repeat, args=(stopping, act), name=act.__name__, daemon=True).start()
        self._repeat(stopping, self.once)
        self._attempt(self.count_ended)  # for an older release, which knows the lanes' counters alone

    def once(self) -> None:
        for step in (
            self.rescue,
            self.expire,
            self.end_backoff,
            self.wake,
            self.advance,
            self.export,
            self.count_ended,
            self.fold_usage,
            self.note_progress,
            self.end_batches,
            self.prune,
            self.delete_expired,
            self.take_samples,
            self.index_prompts,
            self.count_bytes,
        ):
            self._attempt(step)

    def clean(self) -> None:
        self._attempt(self.delete_leftovers)
        self._attempt(self.delete_uploads)

    def delete(self) -> None:
        for step in self._deleter.steps:
            self._attempt(step)

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
            expired = leases.expired(connection, self._settings.lease_s)
        rescued = self._in_parts(self.rescue, expired, leases.rescue)
        self._rescued_at = now
        ended_jobs = [job_id for one in rescued for job_id in one.ended_jobs]
        if count := sum(len(one.leases) for one in rescued):
            log_event("leases_rescued", leases=count, images=sum(one.images for one in rescued), ended=len(ended_jobs))
            self._broker.announce_changed(ended_jobs)

    def expire(self) -> None:
        """Fail the jobs whose deadline has passed, and announce it to the workers that render them."""
        with self._transaction() as connection:
            overdue = jobs.overdue(connection)
        expired = [job_id for some in self._in_parts(self.expire, overdue, jobs.expire) for job_id in some]
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

    def count_ended(self) -> None:
        """Count in the lanes what has ended since the last sweep; then batches have their progress, and end."""
        with self._transaction() as connection:
            lanes.count(connection)

    def fold_usage(self) -> None:
        """Add what leases have stored up by day."""
        with self._transaction() as connection:
            ledger.fold(connection)

    def note_progress(self) -> None:
        """Record the progress of the batches, and pause those whose stop rule applies."""
        with self._transaction() as connection:
            counted = progress.count(connection)
        self._failures.each("note_progress", {row.id: row for row in counted}, self._note_progress)

    def _note_progress(self, counted: Row[Any]) -> None:
        measured = progress.measure(counted)
        if measured is None:
            return
        with self._transaction() as connection:
            is_first = progress.record(connection, measured)
        if is_first and measured.stop_reason:
            log_event("batch_stopped", batch=measured.batch_id, reason=measured.stop_reason)

    def end_batches(self) -> None:
        """End the batches whose jobs have ended, and send a message for each dataset that waited for one."""
        with self._transaction() as connection:
            waiting = datasets.unfinished_of(connection, batches.end(connection))
        for dataset_id in waiting:
            self._broker.export(dataset_id)

    def prune(self) -> None:
        """Mark workers as stopped that have stopped reporting."""
        silence = 3 * max(self._settings.lease_s, self._settings.beat_s)
        with self._transaction() as connection:
            pruned = workers.prune(connection, silence)
        if pruned:
            log_event("workers_pruned", workers=",".join(map(str, pruned)))

    def delete_expired(self) -> None:
        """Once a minute, delete the rows that nothing needs any more, in small steps."""
        if self._clock() < self._no_pruning_before:
            return
        deleted: dict[str, Any] = {rule.table: rows for rule in pruning.RULES if (rows := self._prune_table(rule))}
        if deleted:
            log_event("rows_pruned", **deleted)
        self._no_pruning_before = self._clock() + PRUNE_S

    def _prune_table(self, rule: pruning.Rule) -> int:
        deleted = 0
        for _ in range(PRUNE_STEPS):
            with self._transaction() as connection:
                rows = pruning.step(connection, rule, self._settings)
            deleted += rows
            if rows < pruning.STEP_ROWS:
                break
        return deleted

    def take_samples(self) -> None:
        """Once a minute, copy the counters of the lanes for the charts."""
        with self._transaction() as connection:
            stats.take_sample(connection)

    def index_prompts(self) -> None:
        """Flush the pending list of the prompts' GIN index, so that no job update has to."""
        with self._transaction() as connection:
            search.index_prompts(connection)

    def count_bytes(self) -> None:
        """Count what the tenants store whose bytes are limited."""
        with self._transaction() as connection:
            due = stored_bytes.due(connection, by_default=self._settings.limit_stored_bytes is not None)
        for tenant_id in due:
            began = self._clock()
            with self._transaction() as connection:
                counted = stored_bytes.count(connection, tenant_id)
                stored_bytes.record(connection, tenant_id, counted, self._clock() - began)

    def delete_leftovers(self) -> None:
        """Delete the objects that expired leases may have stored and no image uses, lease by lease."""
        with self._transaction() as connection:
            found = orphans.orphaned_keys(connection, CLEAN_AFTER_LEASES * self._settings.lease_s)
        leftovers = {lease_id: (lease_id, keys) for lease_id, keys in found.items()}
        deleted = self._failures.each("delete_leftovers", leftovers, self._delete_leftovers)
        if deleted:
            log_event("leftovers_deleted", leases=len(deleted), keys=sum(deleted))

    def _delete_leftovers(self, leftovers: tuple[UUID, Sequence[str]]) -> int:
        lease_id, keys = leftovers
        with self._storage_outage.tracked():
            self._storage.delete(keys)
        with self._transaction() as connection:
            orphans.mark_cleaned(connection, [lease_id])
        return len(keys)

    def delete_uploads(self) -> None:
        """Delete the uploads that nothing has used for a while. Their rows are locked until their bytes are deleted."""
        with self._transaction() as connection:
            unused = uploads.unused(connection, self._settings.upload_days)
        deleted = self._in_parts(self.delete_uploads, unused, self._delete_uploads)
        if any(deleted):
            log_event("uploads_deleted", uploads=sum(deleted))

    def _delete_uploads(self, connection: Connection, upload_ids: Sequence[UUID]) -> int:
        taken = uploads.take_unused(connection, upload_ids, self._settings.upload_days)
        with self._storage_outage.tracked():
            self._storage.delete(upload_key(*upload) for upload in taken)
        return len(taken)

    def _repeat(self, stopping: threading.Event, act: Callable[[], None]) -> None:
        while not stopping.is_set():
            act()
            stopping.wait(
                self._settings.sweep_s * random.uniform(0.7, 1.3)
            )  # so that control workers do not run it at the same time

    def _attempt(self, step: Callable[[], None]) -> None:
        self._failures.attempt(step.__name__, step)

    def _in_parts(
        self, step: Callable[[], None], ids: Sequence[UUID], act: Callable[[Connection, Sequence[UUID]], T]
    ) -> list[T]:
        """Act on these rows in one transaction; when that fails for an unforeseen reason, in one for each row."""

        def act_on_one(one: UUID) -> T:
            with self._transaction() as connection:
                return act(connection, [one])

        try:
            with self._transaction() as connection:
                done = [act(connection, ids)] if ids else []
        except Unavailable:
            raise
        except Exception:
            return self._failures.each(step.__name__, {one: one for one in ids}, act_on_one)
        self._failures.forget(step.__name__, ids)
        return done

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._outage.tracked(), transaction(self._database) as connection:
            yield connection
