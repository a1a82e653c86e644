"""How a dataset is split into shards: by bytes and by number of images, and never within a prompt."""

import io
import json
import random
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import text

from cli.verify import Verification
from common.batches.plan import Plan
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.dataset import Step
from common.datasets.layout import COLUMNS_SINCE, DatasetPlan, Layout
from common.db import transaction
from common.enums import ImageState
from common.queue import leases
from common.queue.leases import Outcome
from common.storage import image_key, sha256
from tests.support.batch_stories import BatchStory
from tests.support.stories import CATALOG, Story
from tests.support.workers import bucket_of
from worker.datasets import exporter
from worker.datasets.exporter import Exporter

PROMPTS = [f"红色的圆形 {n}" for n in range(6)]
LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def batch_id(farm: BatchStory) -> UUID:
    """A batch that has ended, of six prompts with two pictures each; every picture has a size of its own."""
    batch_id = farm.expanded(PROMPTS, plan=Plan(defaults=LOOK, images_per_prompt=2, seed=0))
    microbatch, outcomes = farm.started(capacity=12), list[Outcome]()
    for image in microbatch.images:
        data = picture(lines=8 + 4 * image.seed)
        key = image_key(image.job_id, image.index, microbatch.lease_id, "png")
        farm.storage.put(key, data, "image/png")
        outcomes.append(Outcome(image.id, ImageState.STORED, key=key, sha256=sha256(data), bytes=len(data)))
    with transaction(farm.database) as connection:
        leases.publish(connection, microbatch.lease_id, outcomes)
    assert farm.end() == [batch_id]
    return batch_id


def picture(lines: int) -> bytes:
    """The more lines of noise, the more bytes."""
    file, noise = io.BytesIO(), random.Random(lines).randbytes(3 * 64 * lines)
    Image.frombytes("RGB", (64, 64), noise.ljust(3 * 64 * 64, b"\0")).save(file, "png")
    return file.getvalue()


def exported(
    farm: BatchStory, settings: Settings, batch_id: UUID, folder: Path, layout: Layout, shard_images: int
) -> list[list[int]]:
    """The bytes of each image, by shard, of a verified dataset."""
    with transaction(farm.database) as connection:
        dataset_id = datasets.submit(connection, farm.tenant(), batch_id, DatasetPlan(layout=layout))
    assert not Exporter(farm.database, farm.storage, CATALOG, shard_images=shard_images).work(dataset_id, 60)
    prefix = f"datasets/{dataset_id}/"
    for key, data in bucket_of(settings).items():
        if key.startswith(prefix):
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    verification = Verification(folder)
    verification.run()
    assert (verification.problems, verification.rows, verification.pictures) == ([], 12, 12)
    manifests = [json.loads(path.read_text()) for path in sorted((folder / "_state").iterdir())]
    assert [manifest["shard"] for manifest in manifests] == [f"train-{number:05}" for number in range(len(manifests))]
    coming, shards = iter(farm.images_of(batch_id)), list[list[int]]()
    for manifest in manifests:
        shards.append([next(coming).bytes for _ in range(manifest["rows"])])
        assert manifest["bytes"] == sum(shards[-1])
    (row,) = farm.rows("SELECT shards, finished_at, error_code FROM datasets WHERE id = :id", id=dataset_id)
    assert (row.shards, row.finished_at is not None, row.error_code) == (len(manifests), True, None)
    return shards


@pytest.mark.parametrize("layout", ["webdataset", "imagefolder"])
def test_a_shard_has_a_limit_of_bytes(
    farm: BatchStory,
    settings: Settings,
    batch_id: UUID,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: Layout,
) -> None:
    sizes = [image.bytes for image in farm.images_of(batch_id)]
    assert len(set(sizes)) == 12
    most = sum(sizes[:6])  # the first three prompts fit to the byte, of the others no two do
    assert sum(sizes[10:]) < most < sum(sizes[6:10])
    monkeypatch.setattr(exporter, "SHARD_BYTES", most)
    assert exported(farm, settings, batch_id, tmp_path, layout, 100) == [sizes[:6], sizes[6:8], sizes[8:10], sizes[10:]]


def test_a_prompt_larger_than_a_shard_has_a_shard_of_its_own(
    farm: BatchStory, settings: Settings, batch_id: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [image.bytes for image in farm.images_of(batch_id)]
    monkeypatch.setattr(exporter, "SHARD_BYTES", 1)
    shards = exported(farm, settings, batch_id, tmp_path, "webdataset", 100)
    assert shards == [sizes[place : place + 2] for place in range(0, 12, 2)]


@pytest.mark.parametrize(("shard_images", "prompts"), [(5, [2, 2, 2]), (6, [3, 3]), (1, [1] * 6)])
def test_a_shard_has_a_limit_of_images(
    farm: BatchStory, settings: Settings, batch_id: UUID, tmp_path: Path, shard_images: int, prompts: list[int]
) -> None:
    shards = exported(farm, settings, batch_id, tmp_path, "parquet", shard_images)
    assert [len(shard) for shard in shards] == [2 * count for count in prompts]


def test_what_older_code_has_begun_is_begun_anew(farm: BatchStory, batch_id: UUID) -> None:
    """Its shards have other keys; and that code leaves it alone from then on."""
    with transaction(farm.database) as connection:
        dataset_id = datasets.submit(connection, farm.tenant(), batch_id, DatasetPlan())
        half = "needs_code = 1, shard = 1, position = 3, written = 2, shards = 1, images = 6, pictures = 6"
        connection.execute(text(f"UPDATE datasets SET {half}"))
    for shard, position in ((0, 0), (1, 3)):
        with transaction(farm.database) as connection:
            owned = datasets.acquire(connection, dataset_id, 0)
            assert owned is not None
            assert (owned.shard, owned.position, owned.shards, owned.images) == (shard, position, shard, 6 * shard)
            if not shard:
                datasets.advance(connection, owned, Step(3, ends_split=False, images=6, pictures=6))
            datasets.release(connection, owned)
    assert farm.rows("SELECT needs_code FROM datasets") == [(COLUMNS_SINCE,)]
