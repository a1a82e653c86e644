"""Writes datasets: shard after shard as far as the batch has finished, then the card, the manifest and the checksums.

An exporter that was interrupted left whole shards; the next one writes the current shard, or the final files, again.
Equal rows give equal bytes, so writing something twice, or in two processes, changes nothing. The statements are in
`common.datasets`; `worker.datasets.shard` writes a shard, `worker.datasets.card` the files about the whole.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from common.batches import skipped_lines
from common.catalog.catalog import Catalog
from common.datasets import contents, layout
from common.datasets import lifecycle as datasets
from common.datasets.layout import SHARD_BYTES, SHARD_IMAGES
from common.datasets.lifecycle import EXPORT_SILENCE_S, Dataset, Step
from common.db import transaction
from common.enums import ImageState
from common.errors import Error, NotFound, Unavailable
from common.failures import BACKOFF_S, INTERNAL_ERROR, MAX_FAILURES, internal_error, new_reference
from common.log import log_event
from common.storage import Storage, sha256
from worker.availability import Availability
from worker.datasets import card, formats, sentence
from worker.datasets.files import DatasetFiles, File
from worker.datasets.shard import Item, Report, Shard, ShardManifest, ShardWriter, items_of

WORK_S = 20.0  # on one dataset before another one that is queued; the current shard is finished first
REPORT_S = 2.0  # between two records of how far a shard is written
PAGE_JOBS = 500


class LostOwnership(Exception):
    """Another process owns the dataset now, or this process is about to end."""


class Unwritable(Error):
    """The dataset cannot be written."""

    code = "unwritable"


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
        self._busy = threading.Lock()
        self._others_wait = False
        self._outage = Availability("database_away", "database_back")
        self._leaving = threading.Event()

    def work(self, dataset_id: UUID, seconds: float = WORK_S) -> bool:
        """Write a dataset for so long. True when it can be continued at once and no other dataset is queued.

        Writes one dataset at a time: False when another thread is writing. Raises Unavailable when Postgres or the
        image store is away. What fails for another reason is counted, and ends the dataset after some tries. The sweep
        starts again what is unfinished.
        """
        if not self._busy.acquire(blocking=False):
            self._others_wait = True
            return False
        try:
            self._others_wait = False
            dataset = self._acquire(dataset_id)
            has_more = dataset is not None and self._write(dataset, time.monotonic() + seconds)
            return has_more and not self._others_wait
        finally:
            self._busy.release()

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

    def _write(self, dataset: Dataset, until: float) -> bool:
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

    def _write_shard(self, dataset: Dataset, split: str) -> Step | None:
        """Write the next shard, if there is one. None when images that belong to it have not ended yet."""
        report = self._reporter(dataset)
        found = self._next_items(dataset, split, report)
        if found is None:
            return None
        items, position, ends_split = found
        if not items:
            return Step(position, ends_split, 0, 0)
        with transaction(self._database) as connection:
            columns = contents.columns(connection, dataset)
        digest = dataset.plan.digest(dataset.batch_id)
        shard = Shard(layout.shard_name(split, dataset.shard), dataset.plan.layout, digest, items, columns)
        stored = self._writer.write(shard, DatasetFiles(self._storage, dataset.id), report)
        log_event("dataset_shard_written", dataset=dataset.id, shard=shard.name, images=len(items), pictures=stored)
        return Step(position, ends_split, len(items), stored)

    def _next_items(self, dataset: Dataset, split: str, report: Report) -> tuple[list[Item], int, bool] | None:
        """The next images of a split, the position after them, and whether the split has no more."""
        with transaction(self._database) as connection:
            prefix = contents.finished_prefix(connection, dataset)
        items, size, position = list[Item](), 0, dataset.position
        while position < prefix.position:
            report(0)
            with transaction(self._database) as connection:
                jobs = contents.finished_jobs(connection, dataset, position, prefix.position, PAGE_JOBS)
            for job in jobs:
                if dataset.plan.split_of(job.recipe["prompt"]) == split:
                    more = list(items_of(job, split, self._catalog))
                    size += sum(item.bytes for item in more)
                    if items and (len(items) + len(more) > self._shard_images or size > SHARD_BYTES):
                        return items, job.position, False
                    items += more
            position = jobs[-1].position + 1 if jobs else prefix.position
        return (items, position, True) if prefix.has_ended else None

    def _reporter(self, dataset: Dataset) -> Report:
        """Records now and then how many images of a shard are done, which keeps the ownership. Raises LostOwnership."""
        reported_at = time.monotonic()

        def report(done: int) -> None:
            nonlocal reported_at
            if self._leaving.is_set():
                raise LostOwnership
            if time.monotonic() - reported_at < REPORT_S:
                return
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

    # The whole

    def _finish(self, dataset: Dataset) -> None:
        """Write the files about the whole. Raises Unwritable when no image is stored."""
        files, report = DatasetFiles(self._storage, dataset.id), self._reporter(dataset)
        shards = self._shard_manifests(dataset, files, report)
        stored = sum(shard["pictures"] for shard in shards)
        if not stored:
            raise Unwritable(sentence("no_image_stored", images=sum(shard["rows"] for shard in shards)))
        with transaction(self._database) as connection:
            batch = contents.batch_facts(connection, dataset)
            columns = contents.columns(connection, dataset)
            skipped = skipped_lines.head(connection, dataset.batch_id, card.SHOWN_SKIPPED)
        the_card = card.DatasetCard(dataset.plan, dataset.batch_id, batch, skipped, shards, self._catalog, columns)
        written = [files.put(path, data) for path, data in the_card.files(self._samples(dataset))]
        written += [File(path, f["sha256"], f["bytes"]) for shard in shards for path, f in shard["files"].items()]
        # Written again as they are, for their checksums.
        written += [files.put_json(layout.shard_manifest_path(shard["shard"]), shard) for shard in shards]
        sums = files.put_blocks(layout.SUMS, self._checksums(dataset, files, written, shards, report))
        count, size = len(written) + 1, sum(file.bytes for file in written) + sums.bytes
        if dataset.plan.layout == "imagefolder":
            count, size = count + stored, size + sum(shard["bytes"] for shard in shards)
        with transaction(self._database) as connection:
            is_owner = datasets.finish(connection, dataset, sums.sha256, count, size)
        if is_owner:
            log_event("dataset_ready", dataset=dataset.id, pictures=stored, files=count, bytes=size)

    def _shard_manifests(self, dataset: Dataset, files: DatasetFiles, report: Report) -> list[ShardManifest]:
        """The manifests of all shards, in order. Raises Unwritable when they are not those of this dataset."""
        shards = list[ShardManifest]()
        for split in dataset.plan.split_names:
            number = 0
            with suppress(NotFound):
                while True:
                    report(0)
                    path = layout.shard_manifest_path(layout.shard_name(split, number))
                    shards.append(json.loads(files.get(path)))
                    number += 1
        found = len(shards), sum(shard["rows"] for shard in shards), {shard["plan"] for shard in shards}
        if found != (dataset.shards, dataset.images, {dataset.plan.digest(dataset.batch_id)} if shards else set()):
            raise Unwritable(sentence("shards_damaged"))
        return shards

    def _samples(self, dataset: Dataset) -> list[bytes]:
        """The files of some of the first stored images."""
        with transaction(self._database) as connection:
            jobs = contents.finished_jobs(connection, dataset, 0, PAGE_JOBS, PAGE_JOBS)
        stored = [image for job in jobs for image in job.images if image["state"] == ImageState.STORED]
        found = list[bytes]()
        for image in stored[: card.SAMPLES]:
            with suppress(NotFound):
                data = self._storage.get(image["key"])
                found += [data] if sha256(data) == image["sha256"] else []
        return found

    def _checksums(
        self, dataset: Dataset, files: DatasetFiles, written: list[File], shards: list[ShardManifest], report: Report
    ) -> Iterator[bytes]:
        """One line a file, as `sha256sum --check` reads them. The metadata names the images of an image folder."""
        lines = (f"{file.sha256}  {file.path}\n" for file in sorted(written, key=manifest_first))
        images = (self._image_checksums(files, shard, report) for shard in shards)
        more = chain.from_iterable(images) if dataset.plan.layout == "imagefolder" else ()
        return (line.encode() for line in chain(lines, more))

    def _image_checksums(self, files: DatasetFiles, shard: ShardManifest, report: Report) -> Iterator[str]:
        report(0)
        data = files.get(layout.metadata_path(shard["shard"]))
        for row in formats.rows_of(data, "key", "format", "sha256", "status"):
            if row["status"] == ImageState.STORED:
                yield f"{row['sha256']}  {layout.image_path(shard['shard'], row)}\n"


def manifest_first(file: File) -> tuple[bool, str]:
    """The order of SHA256SUMS: a download that breaks off then has the manifest, which says whose files these are."""
    return file.path != layout.MANIFEST, file.path
