"""Datasets that are written at the same time: a small one does not wait for the shard of a large one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from common.broker import Broker
from common.config import Settings
from common.storage import Storage
from tests.support.exports import ExportStory, bytes_in
from tests.support.stories import CATALOG, Story
from tests.support.workers import running, until
from worker.datasets.exporter import Exporter
from worker.datasets.turns import Turns

PROMPTS = [f"红色的圆形 {n}" for n in range(60)]


@pytest.fixture
def farm(story: Story, settings: Settings) -> ExportStory:
    return ExportStory(story, settings)


class Watched(Storage):
    """Tells when the first image of a batch is read, and gives it once `go_on` is set."""

    jobs: frozenset[str] = frozenset()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.has_begun, self.go_on = threading.Event(), threading.Event()

    def get(self, key: str) -> bytes:
        if key.split("/")[1] in self.jobs:
            self.has_begun.set()
            assert self.go_on.wait(240)
        return super().get(key)


@pytest.mark.parametrize("layout", ["webdataset", "imagefolder", "parquet"])
def test_a_small_dataset_is_ready_before_the_shard_of_a_large_one(
    farm: ExportStory, settings: Settings, tmp_path: Path, aside: ThreadPoolExecutor, layout: str
) -> None:
    large, small = farm.rendered(PROMPTS), farm.rendered(PROMPTS[:2], seed=500)
    whole = bytes_in(farm.exported(tmp_path / "whole", large, layout=layout))
    store = Watched(settings)
    store.jobs = frozenset(str(job.id) for job in farm.jobs_of(large))
    exporter = Exporter(farm.database, store, CATALOG)
    exporter._turns = Turns(seconds=0)
    both = farm.submitted(large, layout=layout), farm.submitted(small)
    of_large = aside.submit(exporter.work, both[0], 240)
    assert store.has_begun.wait(240)
    of_small = aside.submit(exporter.work, both[1], 240)
    until(lambda: len(exporter._turns._queue) == 2)
    store.go_on.set()
    of_small.result(240)
    assert (farm.dataset(both[1]).state, farm.dataset(both[0]).shards) == ("ready", 0)
    of_large.result(240)
    farm.save(both[0], tmp_path / "beside")
    assert bytes_in(tmp_path / "beside") == whole


def test_who_finds_no_seat_comes_later(farm: ExportStory, settings: Settings, aside: ThreadPoolExecutor) -> None:
    large, small = farm.rendered(PROMPTS), farm.rendered(PROMPTS[:2], seed=500)
    store = Watched(settings)
    store.jobs = frozenset(str(job.id) for job in farm.jobs_of(large))
    exporter = Exporter(farm.database, store, CATALOG)
    exporter._turns = Turns(slots=1)
    both = farm.submitted(large, shard_images=40), farm.submitted(small)
    of_large = aside.submit(exporter.work, both[0], 0)
    assert store.has_begun.wait(240)
    assert not exporter.work(both[1])
    store.go_on.set()
    assert not of_large.result(240)  # it lets the other one go first
    assert farm.dataset(both[0]).shards == 1
    assert not exporter.work(both[1])
    assert farm.dataset(both[1]).state == "ready"


def test_a_control_worker_that_is_killed_leaves_both_to_be_written(
    farm: ExportStory, settings: Settings, tmp_path: Path
) -> None:
    """By kill -9; their bytes are those of datasets of which nobody was killed."""
    large, small = farm.rendered(PROMPTS), farm.rendered(PROMPTS[:10], seed=5000)
    whole = {batch: bytes_in(farm.exported(tmp_path / str(batch), batch, shard_images=50)) for batch in (large, small)}
    made = {batch: farm.submitted(batch, shard_images=50) for batch in (large, small)}

    def has_begun(dataset_id: UUID) -> bool:
        return bool(farm.dataset(dataset_id).owner_id or farm.dataset(dataset_id).begun_at)

    with running(tmp_path, settings, "control", SWEEP="false") as process:
        for dataset_id in made.values():
            Broker(settings).export(dataset_id)
        until(lambda: any(map(has_begun, made.values())))
        process.kill()
        process.wait(10)
    with farm.database.begin() as connection:
        connection.exec_driver_sql("UPDATE datasets SET touched_at = now() - interval '1 minute'")
    with running(tmp_path, settings, "control"):  # its sweep finds them
        until(lambda: all(farm.dataset(dataset_id).state == "ready" for dataset_id in made.values()), seconds=200)
    for batch, dataset_id in made.items():
        farm.save(dataset_id, tmp_path / "made" / str(batch))
        assert bytes_in(tmp_path / "made" / str(batch)) == whole[batch]
