"""Writes datasets: shard after shard as far as the batches have finished, then the files about the whole.

An exporter that was interrupted left whole shards; the next one writes the current shard, or the final files, again.
Equal rows give equal bytes, so writing something twice, or in two processes, changes nothing. Several datasets take
turns. The statements are in `common.datasets`; `worker.datasets.shard` writes a shard, `worker.datasets.closing` the
files about the whole.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from common.catalog.catalog import Catalog
from common.datasets import contents, layout
from common.datasets import lifecycle as datasets
from common.datasets.columns import Columns
from common.datasets.dataset import Dataset, Step
from common.datasets.layout import SHARD_BYTES, SHARD_IMAGES
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.db import transaction
from common.enums import ImageState
from common.errors import Invalid, Unavailable
from common.failures import BACKOFF_S, INTERNAL_ERROR, MAX_FAILURES, internal_error, new_reference
from common.log import log_event
from common.storage import Storage
from worker.availability import Availability
from worker.datasets.closing import Closing, Unwritable
from worker.datasets.conversion import Conversion
from worker.datasets.files import DatasetFiles
from worker.datasets.shard import Item, Report, Shard, ShardWriter, items_of
from worker.datasets.turns import Slot, Turns

WORK_S = 20.0  # on one dataset before another one that is queued; the current shard is finished first
REPORT_S = 2.0  # between two records of how far a shard is written
PAGE_JOBS = 500
SHARD_ROWS = 2 * SHARD_IMAGES  # those without a picture too

Place = tuple[int, int]  # the number of a batch, and a position in it


class LostOwnership(Exception):
    """Another process owns the dataset now, or this process is about to end."""


class Exporter:
    def __init__(
        self,
        database: Database,
        storage: Storage,
        catalog: Catalog,
        *,
        shard_images: int = SHARD_IMAGES,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """`backoff_s`: after the first unforeseen failure of a dataset."""
        self._database = database
        self._storage = storage
        self._catalog = catalog
        self._shard_images = shard_images
        self._backoff_s = backoff_s
        self._writer = ShardWriter(storage)
        self._turns = Turns()
        self._others_wait = False
        self._outage = Availability("database_away", "database_back")
        self._leaving = threading.Event()

    def work(self, dataset_id: UUID, seconds: float = WORK_S) -> bool:
        """Write a dataset for so long. True when it can be continued at once and no other dataset is queued.

        While other threads write other datasets, they take turns; False when there are too many. Raises Unavailable
        when Postgres or the image store is away. What fails for another reason is counted, and ends the dataset after
        some tries. The sweep starts again what is unfinished.
        """
        slot = self._join()
        return slot is not None and self._work(slot, dataset_id, seconds)

    def start(self, dataset_id: UUID, go_on: Callable[[UUID], object]) -> None:
        """Do the same in a thread of its own, which calls `go_on` when the dataset can be continued at once."""

        def work(slot: Slot) -> None:
            with suppress(Unavailable):  # the sweep sends the message again
                if self._work(slot, dataset_id, WORK_S):
                    go_on(dataset_id)

        if slot := self._join():
            threading.Thread(target=work, args=(slot,), name=f"export {dataset_id}").start()

    def _join(self) -> Slot | None:
        slot = self._turns.join()
        self._others_wait = slot is None
        return slot

    def _work(self, slot: Slot, dataset_id: UUID, seconds: float) -> bool:
        with slot:
            while not slot.has_turn(REPORT_S):
                if self._leaving.is_set():
                    return False
            dataset = self._acquire(dataset_id)
            has_more = dataset is not None and self._write(dataset, slot, time.monotonic() + seconds)
            return has_more and not self._others_wait

    def leave(self) -> None:
        """Stop writing and release the dataset: this process is about to end."""
        self._leaving.set()

    def _acquire(self, dataset_id: UUID) -> Dataset | None:
        try:
            with transaction(self._database) as connection:
                dataset = datasets.acquire(connection, dataset_id, EXPORT_SILENCE_S)
                if dataset is None or dataset.open_before < MAX_FAILURES:
                    return dataset
                self._give_up(connection, dataset)
        except Unavailable:
            raise
        except Exception:
            self._count_failure(dataset_id, None)
        return None

    def _write(self, dataset: Dataset, slot: Slot, until: float) -> bool:
        try:
            while split := dataset.split_name:
                step = self._write_shard(dataset, split, slot)
                if step is None:
                    return False
                dataset = self._advance(dataset, step)
                if time.monotonic() > until:
                    return True
            self._finish(dataset, slot)
        except LostOwnership:
            pass
        except Unwritable as error:
            with transaction(self._database) as connection:
                datasets.fail(connection, dataset, error.code, error.message)
            log_event("dataset_failed", dataset=dataset.id, reason=error.message)
        except Unavailable:
            raise
        except Exception:
            self._count_failure(dataset.id, dataset.owner_id)
        finally:
            self._end_turn(dataset)
        return False

    def _count_failure(self, dataset_id: UUID, owner_id: UUID | None) -> None:
        reference = new_reference()
        log_event("export_failed", exc_info=True, dataset=dataset_id, reference=reference)
        with transaction(self._database) as connection:
            has_ended = datasets.count_failure(connection, dataset_id, owner_id, reference, self._backoff_s)
        if has_ended:
            log_event("dataset_given_up", dataset=dataset_id, reference=reference)

    def _give_up(self, connection: Connection, dataset: Dataset) -> None:
        """End a dataset of which MAX_FAILURES processes died one after the other."""
        reference = new_reference()
        log_event("dataset_lost_workers", dataset=dataset.id, workers=dataset.open_before, reference=reference)
        datasets.fail(connection, dataset, INTERNAL_ERROR, internal_error(reference))

    def _end_turn(self, dataset: Dataset) -> None:
        """Give the dataset up to others. While Postgres is away this waits until the process is asked to end: otherwise
        some outages would look like as many dead processes.
        """

        def end() -> None:
            with transaction(self._database) as connection:
                datasets.release(connection, dataset)
                datasets.end_turn(connection, dataset)

        with suppress(Unavailable):
            self._outage.retry(end, self._leaving.is_set)

    # A shard

    def _write_shard(self, dataset: Dataset, split: str, slot: Slot) -> Step | None:
        """Write the next shard, if there is one. None when images that belong to it have not ended yet."""
        report = self._reporter(dataset, slot)
        found = self._next_items(dataset, split, report)
        if found is None:
            return None
        items, (source, position), ends_split = found
        if not items:
            return Step(position, ends_split, 0, 0, source)
        columns = self._columns(dataset)
        if columns is None:
            return None
        name, plan = layout.shard_name(split, dataset.shard), dataset.plan
        shard = Shard(name, plan.layout, dataset.plan_digest, items, columns, Conversion.of(plan))
        stored = self._writer.write(shard, DatasetFiles(self._storage, dataset.id), report)
        log_event("dataset_shard_written", dataset=dataset.id, shard=shard.name, images=len(items), pictures=stored)
        return Step(position, ends_split, len(items), stored, source)

    def _columns(self, dataset: Dataset) -> Columns | None:
        """None while they are not known. Raises Unwritable where they are too many."""
        try:
            with transaction(self._database) as connection:
                return contents.columns(connection, dataset)
        except Invalid as error:
            raise Unwritable(error.message) from None

    def _next_items(self, dataset: Dataset, split: str, report: Report) -> tuple[list[Item], Place, bool] | None:
        """The next images of a split, the place after them, and whether the split has no more."""
        plan = dataset.plan
        items = NextShard(plan.shard_images or self._shard_images, plan.shard_size or SHARD_BYTES)
        for source in range(dataset.source, len(dataset.batch_ids)):
            here = replace(dataset, source=source, position=dataset.position if source == dataset.source else 0)
            with transaction(self._database) as connection:
                prefix = contents.finished_prefix(connection, here)
            position = here.position
            while position < prefix.position:
                report(0)
                with transaction(self._database) as connection:
                    jobs = contents.finished_jobs(connection, here, position, prefix.position, PAGE_JOBS)
                for job in jobs:
                    if plan.split_of(job.recipe["prompt"]) == split:
                        more = [item for item in items_of(job, split, self._catalog) if plan.chooses(item.row)]
                        if not items.add(more):
                            return items.items, (source, job.position), False
                position = jobs[-1].position + 1 if jobs else prefix.position
            if not prefix.has_ended:
                return None
        return items.items, (len(dataset.batch_ids) - 1, 0), True

    def _reporter(self, dataset: Dataset, slot: Slot) -> Report:
        """Records now and then how many images of a shard are done, which keeps the ownership. Raises LostOwnership.

        It waits while other datasets have their turns.
        """
        reported_at = time.monotonic()

        def report(done: int) -> None:
            nonlocal reported_at
            has_turn = False
            while not has_turn:
                has_turn = slot.has_turn(REPORT_S)
                if self._leaving.is_set():
                    raise LostOwnership
                if time.monotonic() - reported_at > REPORT_S:
                    with transaction(self._database) as connection:
                        if not datasets.record_written(connection, dataset, done):
                            raise LostOwnership
                    reported_at = time.monotonic()

        return report

    def _advance(self, dataset: Dataset, step: Step) -> Dataset:
        with transaction(self._database) as connection:
            advanced = datasets.advance(connection, dataset, step)
        if advanced is None:
            raise LostOwnership
        return advanced

    def _finish(self, dataset: Dataset, slot: Slot) -> None:
        """Write the files about the whole. Raises Unwritable when no image is stored."""
        closing = Closing(self._database, self._storage, self._catalog, dataset, self._reporter(dataset, slot))
        whole = closing.write()
        with transaction(self._database) as connection:
            is_owner = datasets.finish(connection, dataset, whole.digest, whole.files, whole.bytes)
        if is_owner:
            log_event(
                "dataset_ready", dataset=dataset.id, pictures=whole.pictures, files=whole.files, bytes=whole.bytes
            )


class NextShard:
    """The images of the shard that comes next, until it is full."""

    def __init__(self, most_pictures: int, most_bytes: int) -> None:
        self.items: list[Item] = []
        self._most_pictures = most_pictures
        self._most_bytes = most_bytes
        self._pictures = self._bytes = 0

    def add(self, more: Sequence[Item]) -> bool:
        """Add the images of a job, unless the shard would have too many. Those without a picture hardly count."""
        pictures = self._pictures + sum(item.row["status"] == ImageState.STORED for item in more)
        size, rows = self._bytes + sum(item.bytes for item in more), len(self.items) + len(more)
        is_full = pictures > self._most_pictures or size > self._most_bytes or rows > SHARD_ROWS
        if self.items and more and is_full:
            return False
        self.items += more
        self._pictures, self._bytes = pictures, size
        return True
