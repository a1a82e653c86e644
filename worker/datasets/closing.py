"""Writes the files about a whole dataset, once its last shard is written: card, samples, licences, manifest, checksums.

Equal shards give equal bytes. Changes no row.
"""

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

from sqlalchemy import Engine as Database

from common.batches import skipped_lines
from common.catalog.catalog import Catalog
from common.datasets import contents, layout
from common.datasets.columns import Columns
from common.datasets.dataset import Dataset
from common.db import transaction
from common.enums import ImageState
from common.errors import Error, NotFound
from common.sentences import Sentence
from common.storage import Storage, sha256
from worker.datasets import card, formats, sentence
from worker.datasets.facts import SHOWN_SKIPPED
from worker.datasets.files import DatasetFiles, File
from worker.datasets.samples import SAMPLES
from worker.datasets.shard import Item, Report, ShardManifest, items_of

PAGE_JOBS = 500


class Unwritable(Error):
    """The dataset cannot be written."""

    code = "unwritable"


class Whole(NamedTuple):
    digest: str  # of SHA256SUMS
    files: int
    bytes: int  # of all files
    pictures: int


class Closing:
    def __init__(
        self, database: Database, storage: Storage, catalog: Catalog, dataset: Dataset, report: Report
    ) -> None:
        self._database = database
        self._storage = storage
        self._catalog = catalog
        self._dataset = dataset
        self._report = report
        self._files = DatasetFiles(storage, dataset.id)

    def write(self) -> Whole:
        """Raises Unwritable when no image is stored, or the shards are not those of this dataset."""
        dataset, files = self._dataset, self._files
        shards = self._shard_manifests()
        stored = sum(shard["pictures"] for shard in shards)
        if not stored:
            raise Unwritable(self._no_picture(sum(shard["rows"] for shard in shards)))
        the_card = card.DatasetCard(
            plan=dataset.plan,
            digest=dataset.plan_digest,
            batches=[self._facts(source) for source in range(len(dataset.batch_ids))],
            shards=shards,
            prompts=self._count_prompts(shards),
            catalog=self._catalog,
            columns=self._columns(),
        )
        written = [files.put(path, data) for path, data in the_card.files(self._samples())]
        written += [File(path, f["sha256"], f["bytes"]) for shard in shards for path, f in shard["files"].items()]
        # Written again as they are, for their checksums.
        written += [files.put_json(layout.shard_manifest_path(shard["shard"]), shard) for shard in shards]
        sums = files.put_blocks(layout.SUMS, self._checksums(written, shards))
        count, size = len(written) + 1, sum(file.bytes for file in written) + sums.bytes
        if dataset.plan.layout == "imagefolder":
            count, size = count + stored, size + sum(shard["bytes"] for shard in shards)
        return Whole(sums.sha256, count, size, stored)

    def _no_picture(self, rows: int) -> Sentence:
        if self._dataset.plan.where:
            return sentence("no_image_chosen", images=rows)
        return sentence("no_image_stored", images=rows)

    def _facts(self, source: int) -> Mapping[str, Any]:
        """What the card and the manifest say about a batch, with the first skipped lines of its file."""
        of_batch = replace(self._dataset, source=source)
        with transaction(self._database) as connection:
            facts = contents.batch_facts(connection, of_batch)
            return facts | {"skips": skipped_lines.head(connection, of_batch.batch_id, SHOWN_SKIPPED)}

    def _columns(self) -> Columns:
        with transaction(self._database) as connection:
            return contents.columns(connection, self._dataset) or Columns()

    def _shard_manifests(self) -> list[ShardManifest]:
        """The manifests of all shards, in order. Raises Unwritable when they are not those of this dataset."""
        dataset, shards = self._dataset, list[ShardManifest]()
        for split in dataset.plan.split_names:
            number = 0
            with suppress(NotFound):
                while True:
                    self._report(0)
                    path = layout.shard_manifest_path(layout.shard_name(split, number))
                    shards.append(json.loads(self._files.get(path)))
                    number += 1
        found = len(shards), sum(shard["rows"] for shard in shards), {shard["plan"] for shard in shards}
        if found != (dataset.shards, dataset.images, {dataset.plan_digest} if shards else set()):
            raise Unwritable(sentence("shards_damaged"))
        return shards

    def _count_prompts(self, shards: list[ShardManifest]) -> int:
        """How many prompts the stored images have. In memory are eight bytes for each of a shard."""
        hashes = array("Q")
        for shard in shards:
            self._report(0)
            rows = formats.rows_of(self._files.get(layout.metadata_path(shard["shard"])), "prompt", "status")
            prompts = {row["prompt"] for row in rows if row["status"] == ImageState.STORED}
            hashes.extend(layout.prompt_hash(prompt) for prompt in prompts)
        return formats.count_distinct(hashes)

    def _samples(self) -> list[bytes]:
        """The files of some of the first stored images."""
        found = list[bytes]()
        for item in islice(self._stored_items(), SAMPLES):
            with suppress(NotFound):
                data = self._storage.get(item.key or "")
                found += [data] if sha256(data) == item.row["sha256"] else []
        return found

    def _stored_items(self) -> Iterator[Item]:
        plan = self._dataset.plan
        for source in range(len(self._dataset.batch_ids)):
            position, of_batch = 0, replace(self._dataset, source=source, position=0)
            with transaction(self._database) as connection:
                until = contents.finished_prefix(connection, of_batch).position
            while position < until:
                self._report(0)
                with transaction(self._database) as connection:
                    jobs = contents.finished_jobs(connection, of_batch, position, until, PAGE_JOBS)
                for job in jobs:
                    items = items_of(job, plan.split_of(job.recipe["prompt"]), self._catalog)
                    yield from (
                        item for item in items if item.row["status"] == ImageState.STORED and plan.chooses(item.row)
                    )
                position = jobs[-1].position + 1 if jobs else until

    def _checksums(self, written: list[File], shards: list[ShardManifest]) -> Iterator[bytes]:
        """One line a file, as `sha256sum --check` reads them. The metadata names the images of an image folder."""
        lines = (f"{file.sha256}  {file.path}\n" for file in sorted(written, key=manifest_first))
        images = (self._image_checksums(shard) for shard in shards)
        more = chain.from_iterable(images) if self._dataset.plan.layout == "imagefolder" else ()
        return (line.encode() for line in chain(lines, more))

    def _image_checksums(self, shard: ShardManifest) -> Iterator[str]:
        self._report(0)
        data = self._files.get(layout.metadata_path(shard["shard"]))
        for row in formats.rows_of(data, "key", "format", "sha256", "status"):
            if row["status"] == ImageState.STORED:
                yield f"{row['sha256']}  {layout.image_path(shard['shard'], row)}\n"


def manifest_first(file: File) -> tuple[bool, str]:
    """The order of SHA256SUMS: a download that breaks off then has the manifest, which says whose files these are."""
    return file.path != layout.MANIFEST, file.path
