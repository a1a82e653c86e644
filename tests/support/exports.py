"""Stories of datasets without a worker that renders: batches that have ended, with pictures, and their exports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
from sqlalchemy import Row

from cli.verify import Verification
from common.batches.plan import Plan
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.layout import DatasetPlan
from common.db import transaction
from common.enums import ImageState
from common.labels.label import packet
from common.queue import leases
from common.queue.leases import Outcome
from common.storage import image_key, sha256
from tests.support.batch_stories import BatchStory
from tests.support.stories import CATALOG, Story
from tests.support.workers import bucket_of
from worker.datasets.exporter import Exporter
from worker.render.encode import encode

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
WORKER = json.dumps({"device": "stub", "huafang": "0"})


class ExportStory(BatchStory):
    def __init__(self, story: Story, settings: Settings) -> None:
        super().__init__(story, settings)
        self.settings = settings
        self.exporter = Exporter(self.database, self.storage, CATALOG)

    def rendered(self, prompts: Sequence[str], seed: int = 0, format: str = "png", **plan: Any) -> UUID:
        """A batch that has ended. A prompt with `#failed` in it has failed, one with `#flagged` is flagged."""
        wanted = {"defaults": {**LOOK, "format": format}, "images_per_prompt": 2, "seed": seed, **plan}
        return self.finished(self.expanded(prompts, plan=Plan.model_validate(wanted)), format)

    def finished(self, batch_id: UUID, format: str = "png") -> UUID:
        """This batch, which was expanded, once it has ended."""
        while microbatch := self.claim(capacity=100):
            self.start(microbatch)
            outcomes = [self._outcome_of(image, microbatch.lease_id, format) for image in microbatch.images]
            with transaction(self.database) as connection:
                leases.publish(connection, microbatch.lease_id, outcomes)
        assert self.end() == [batch_id]
        return batch_id

    def _outcome_of(self, image: Any, lease_id: UUID, format: str) -> Outcome:
        prompt = image.recipe.prompt
        if "#failed" in prompt:
            return Outcome(image.id, ImageState.FAILED, error_code="nan_image", error_message="-", retryable=False)
        if "#flagged" in prompt:
            return Outcome(image.id, ImageState.FLAGGED)
        noise = np.random.default_rng(image.seed).integers(0, 255, (64, 64, 3), np.uint8)
        texts = {"worker": WORKER, "revision": "1"}
        data = encode(noise, format, texts, packet("0011", str(image.seed), "text2image"))
        key = image_key(image.job_id, image.index, lease_id, format)
        self.storage.put(key, data, f"image/{format}")
        return Outcome(image.id, ImageState.STORED, key=key, sha256=sha256(data), bytes=len(data), render_ms=1)

    def submitted(self, *batch_ids: UUID, **plan: Any) -> UUID:
        with transaction(self.database) as connection:
            return datasets.submit(connection, self.tenant(), batch_ids, DatasetPlan(**plan))

    def dataset(self, dataset_id: UUID) -> Row[Any]:
        (found,) = self.rows("SELECT * FROM datasets WHERE id = :id", id=dataset_id)
        return found

    def exported(self, folder: Path, *batch_ids: UUID, **plan: Any) -> Path:
        """The folder of a dataset that was written and verified."""
        dataset_id = self.submitted(*batch_ids, **plan)
        while self.exporter.work(dataset_id, 60):
            pass
        assert self.dataset(dataset_id).state == "ready", self.dataset(dataset_id)
        self.save(dataset_id, folder)
        assert problems_of(folder) == []
        return folder

    def save(self, dataset_id: UUID, folder: Path) -> None:
        prefix = f"datasets/{dataset_id}/"
        for key, data in bucket_of(self.settings).items():
            if key.startswith(prefix):
                path = folder / key.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def problems_of(folder: Path) -> list[str]:
    verification = Verification(folder)
    verification.run()
    return verification.problems


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of the metadata, in order."""
    return [row for path in sorted((folder / "metadata").iterdir()) for row in pq.read_table(path).to_pylist()]


def shards_in(folder: Path) -> list[tuple[int, int]]:
    """Of each shard its rows and its pictures."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "_state").iterdir())]
    return [(shard["rows"], shard["pictures"]) for shard in found]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
