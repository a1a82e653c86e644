"""Writes datasets: shard after shard as far as the batch has come, then what is said of the whole.

Whatever stops it, the next one begins the same shard, or the whole, again: equal rows give equal bytes, so to write
something twice, or two at once, changes nothing. The statements are those of `common.datasets.lifecycle`, a shard is
`worker.datasets.shard`'s, and what is said of the whole is `worker.datasets.card`'s.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from uuid import UUID

from sqlalchemy import Engine as Database

from common.batches import skipped_lines
from common.catalog.catalog import Catalog
from common.datasets import layout
from common.datasets import lifecycle as datasets
from common.datasets.layout import SHARD_BYTES, SHARD_IMAGES
from common.datasets.lifecycle import EXPORT_SILENCE_S, Dataset, Step
from common.db import transaction
from common.enums import ImageState
from common.errors import Error, NotFound, Unavailable
from common.log import log_event
from common.storage import Storage, sha256
from worker.datasets import card, formats
from worker.datasets.card import Mark
from worker.datasets.files import DatasetFiles, File
from worker.datasets.rows import Item, items_of
from worker.datasets.shard import Shard, ShardWriter

WORK_S = 20.0  # at one dataset, then it is the next one's turn; a shard that is begun is finished
NOTE_S = 2.0  # how often it is noted how far a shard has come
PAGE_JOBS = 500

Note = Callable[[int], None]


class LostOwnership(Error):
    """Somebody else has taken the dataset meanwhile, or this process is about to end."""


class Unwritable(Error):
    """The dataset cannot be written."""

    code = "unwritable"


class Exporter:
    def __init__(
        self, database: Database, storage: Storage, catalog: Catalog, *, shard_images: int = SHARD_IMAGES
    ) -> None:
        self._database = database
        self._storage = storage
        self._catalog = catalog
        self._shard_images = shard_images
        self._writer = ShardWriter(storage)
        self._busy = threading.Lock()
        self._others_wait = False
        self._leaving = threading.Event()

    def work(self, dataset_id: UUID, seconds: float = WORK_S) -> bool:
        """Write a dataset for so long, one at a time; True when there is more to do now, and no other one waits.

        Raises Unavailable when Postgres or the image store is away. Whatever is left is what the sweep comes back to.
        """
        if not self._busy.acquire(blocking=False):
            self._others_wait = True
            return False
        try:
            self._others_wait = False
            with transaction(self._database) as connection:
                dataset = datasets.acquire(connection, dataset_id, EXPORT_SILENCE_S)
            has_more = dataset is not None and self._write_on(dataset, time.monotonic() + seconds)
            return has_more and not self._others_wait
        finally:
            self._busy.release()

    def leave(self) -> None:
        """Let go of what is being written: this process is about to end."""
        self._leaving.set()

    def _write_on(self, dataset: Dataset, until: float) -> bool:
        try:
            while split := dataset.split_name:
                step = self._write_shard(dataset, split)
                if step is None:
                    return False
                dataset = self._advance(dataset, step)
                if time.monotonic() > until:
                    return True
            self._finish(dataset)
        except LostOwnership:
            pass
        except Unwritable as error:
            with transaction(self._database) as connection:
                datasets.fail(connection, dataset, error.code, error.message)
            log_event("dataset_failed", dataset=dataset.id, reason=error.message)
        finally:
            with suppress(Unavailable), transaction(self._database) as connection:
                datasets.release(connection, dataset)
        return False

    # A shard

    def _write_shard(self, dataset: Dataset, split: str) -> Step | None:
        """Write the next shard, if there is one. None while it is not known yet what belongs to it."""
        note = self._note(dataset)
        found = self._next_images(dataset, split, note)
        if found is None:
            return None
        items, place, ends_split = found
        if not items:
            return Step(place, ends_split, 0, 0)
        digest = dataset.plan.digest(dataset.batch_id)
        shard = Shard(layout.shard_name(split, dataset.shard), dataset.plan.layout, digest, items)
        pictures = self._writer.write(shard, DatasetFiles(self._storage, dataset.id), note)
        log_event("dataset_shard_written", dataset=dataset.id, shard=shard.name, images=len(items), pictures=pictures)
        return Step(place, ends_split, len(items), pictures)

    def _next_images(self, dataset: Dataset, split: str, note: Note) -> tuple[list[Item], int, bool] | None:
        """The next images of a split, the place where those after them begin, and whether there are none."""
        with transaction(self._database) as connection:
            reach = datasets.reach(connection, dataset)
        items, size, place = list[Item](), 0, dataset.position
        while place < reach.position:
            note(0)
            with transaction(self._database) as connection:
                jobs = datasets.jobs(connection, dataset, place, reach.position, PAGE_JOBS)
            for job in jobs:
                if dataset.plan.split_of(job.recipe["prompt"]) == split:
                    more = list(items_of(job, split, self._catalog))
                    size += sum(item.bytes for item in more)
                    if items and (len(items) + len(more) > self._shard_images or size > SHARD_BYTES):
                        return items, job.position, False
                    items += more
            place = jobs[-1].position + 1 if jobs else reach.position
        return (items, place, True) if reach.has_ended else None

    def _note(self, dataset: Dataset) -> Note:
        """Notes how many images of a shard are done, now and then: somebody is at it. Raises Overtaken."""
        noted = time.monotonic()

        def note(done: int) -> None:
            nonlocal noted
            if self._leaving.is_set():
                raise LostOwnership("This process is about to end.")
            if time.monotonic() - noted < NOTE_S:
                return
            with transaction(self._database) as connection:
                if not datasets.note_written(connection, dataset, done):
                    raise LostOwnership("Somebody else has taken the dataset.")
            noted = time.monotonic()

        return note

    def _advance(self, dataset: Dataset, step: Step) -> Dataset:
        with transaction(self._database) as connection:
            further = datasets.advance(connection, dataset, step)
        if further is None:
            raise LostOwnership("Somebody else has taken the dataset.")
        return further

    # The whole

    def _finish(self, dataset: Dataset) -> None:
        """Say what there is, and sum it up. Raises Unwritable when there is nothing."""
        shelf, note = DatasetFiles(self._storage, dataset.id), self._note(dataset)
        marks = self._marks(dataset, shelf, note)
        pictures = sum(mark["pictures"] for mark in marks)
        if not pictures:
            raise Unwritable(f"None of the {sum(mark['rows'] for mark in marks)} images of its batch is stored.")
        with transaction(self._database) as connection:
            origin = datasets.origin(connection, dataset)
            skipped = skipped_lines.head(connection, dataset.batch_id, card.SHOWN_SKIPS)
        about = card.DatasetCard(dataset.plan, dataset.batch_id, origin, skipped, marks, self._catalog)
        files = [shelf.put(path, data) for path, data in about.files(self._samples(dataset))]
        files += [File(path, f["sha256"], f["bytes"]) for mark in marks for path, f in mark["files"].items()]
        files += [shelf.put_json(layout.mark_path(mark["shard"]), mark) for mark in marks]  # as it is, for its hash
        sums = shelf.put_blocks(layout.SUMS, self._sums(dataset, shelf, files, marks, note))
        count, size = len(files) + 1, sum(file.bytes for file in files) + sums.bytes
        if dataset.plan.layout == "imagefolder":
            count, size = count + pictures, size + sum(mark["bytes"] for mark in marks)
        with transaction(self._database) as connection:
            is_mine = datasets.finish(connection, dataset, sums.sha256, count, size)
        if is_mine:
            log_event("dataset_ready", dataset=dataset.id, pictures=pictures, files=count, bytes=size)

    def _marks(self, dataset: Dataset, shelf: DatasetFiles, note: Note) -> list[Mark]:
        """The marks of all shards, in order. Raises Unwritable where they are not those of this dataset."""
        marks = list[Mark]()
        for split in dataset.plan.names:
            number = 0
            with suppress(NotFound):
                while True:
                    note(0)
                    marks.append(json.loads(shelf.get(layout.mark_path(layout.shard_name(split, number)))))
                    number += 1
        found = len(marks), sum(mark["rows"] for mark in marks), {mark["plan"] for mark in marks}
        if found != (dataset.shards, dataset.images, {dataset.plan.digest(dataset.batch_id)} if marks else set()):
            raise Unwritable("Its shards are not in the image store as they were written; export the batch again.")
        return marks

    def _samples(self, dataset: Dataset) -> list[bytes]:
        """Some of the first pictures."""
        with transaction(self._database) as connection:
            jobs = datasets.jobs(connection, dataset, 0, PAGE_JOBS, PAGE_JOBS)
        stored = [image for job in jobs for image in job.images if image["state"] == ImageState.STORED]
        found = list[bytes]()
        for image in stored[: card.SAMPLES]:
            with suppress(NotFound):
                data = self._storage.get(image["key"])
                found += [data] if sha256(data) == image["sha256"] else []
        return found

    def _sums(
        self, dataset: Dataset, shelf: DatasetFiles, files: list[File], marks: list[Mark], note: Note
    ) -> Iterator[bytes]:
        """A line a file, as `sha256sum --check` reads them. Of the pictures of an image folder its metadata knows."""
        lines = (f"{file.sha256}  {file.path}\n" for file in sorted(files, key=manifest_first))
        pictures = (self._sums_of_pictures(shelf, mark, note) for mark in marks)
        more = chain.from_iterable(pictures) if dataset.plan.layout == "imagefolder" else ()
        return (line.encode() for line in chain(lines, more))

    def _sums_of_pictures(self, shelf: DatasetFiles, mark: Mark, note: Note) -> Iterator[str]:
        note(0)
        data = shelf.get(layout.metadata_path(mark["shard"]))
        for row in formats.rows_of(data, "key", "format", "sha256", "status"):
            if row["status"] == ImageState.STORED:
                yield f"{row['sha256']}  {layout.picture_path(mark['shard'], row)}\n"


def manifest_first(file: File) -> tuple[bool, str]:
    """Whoever brings the files somewhere in this order has said whose they are before the first of them comes."""
    return file.path != layout.MANIFEST, file.path
