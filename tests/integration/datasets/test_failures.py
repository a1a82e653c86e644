"""A dataset that cannot be written for an unforeseen reason is tried again some times, then fails with an error."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, text

from common.broker import Broker
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.dataset import Step
from common.datasets.layout import DatasetPlan
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.db import transaction
from common.enums import ImageState
from common.errors import Unavailable
from common.failures import MAX_FAILURES
from common.storage import Storage
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import CATALOG, Story
from tests.support.workers import locked, log_of, nobody_let_in, running, terminate_connections, until
from worker.datasets.exporter import Exporter


class DatasetStory(BatchStory):
    """A story with an exporter, and a dataset of a batch that is expanded."""

    def __init__(self, story: Story, settings: Settings) -> None:
        super().__init__(story, settings)
        self.exporter = Exporter(self.database, self.storage, CATALOG)
        self.batch_id = self.expanded(PROMPTS[:2])
        with transaction(self.database) as connection:
            self.id = datasets.submit(connection, self.tenant(), self.batch_id, DatasetPlan())

    @property
    def dataset(self) -> Row[Any]:
        return self.rows("SELECT * FROM datasets WHERE id = :id", id=self.id)[0]

    def change(self, statement: str) -> None:
        with self.database.begin() as connection:
            connection.execute(text(statement), {"id": self.id, "batch": self.batch_id})

    def skip_backoff(self) -> None:
        self.change("UPDATE datasets SET retry_at = now() WHERE retry_at IS NOT NULL")

    def work(self, times: int = 1) -> None:
        for _ in range(times):
            assert not self.exporter.work(self.id)
            self.skip_backoff()

    def lose_workers(self, times: int = MAX_FAILURES) -> None:
        """Control workers begin with the dataset, and say nothing any more."""
        for _ in range(times):
            with transaction(self.database) as connection:
                assert datasets.acquire(connection, self.id, EXPORT_SILENCE_S)
            self.pass_silence()

    def until_begun(self, turns: int) -> None:
        until(lambda: self.dataset.open_turns == turns)

    def pass_silence(self) -> None:
        """Until the owner has lost it."""
        self.change(f"UPDATE datasets SET touched_at = touched_at - interval '{EXPORT_SILENCE_S} s'")

    def due(self) -> list[UUID]:
        with transaction(self.database) as connection:
            return datasets.due(connection, silence_s=-1, rest_s=-1)

    def fail_images(self) -> None:
        while microbatch := self.claim():
            self.start(microbatch)
            self.publish(microbatch, state=ImageState.FAILED, error_code="bad", error_message="-", retryable=False)
        self.end()


POISON = {
    "its row": """UPDATE datasets SET plan = '{"layout": 1}' WHERE id = :id""",  # fails before it is owned
    "a job": "UPDATE jobs SET recipe = recipe - 'prompt' WHERE batch_id = :batch AND position = 1",
}


@pytest.fixture
def farm(story: Story, settings: Settings) -> DatasetStory:
    return DatasetStory(story, settings)


@pytest.mark.parametrize("poison", POISON)
def test_a_dataset_that_cannot_be_read_fails_with_a_reference(
    farm: DatasetStory, poison: str, caplog: pytest.LogCaptureFixture
) -> None:
    farm.fail_images()
    farm.change(POISON[poison])
    farm.work(MAX_FAILURES - 1)
    assert (farm.dataset.failures, farm.dataset.finished_at, farm.dataset.owner_id) == (MAX_FAILURES - 1, None, None)
    farm.work()
    assert (farm.dataset.state, farm.dataset.error_code) == ("failed", "internal_error")
    reference = farm.dataset.error_message.removesuffix(".").split()[-1]
    (found,) = [one for one in caplog.records if reference in one.getMessage() and one.exc_info]
    assert f"dataset={farm.id}" in found.getMessage()
    assert farm.due() == []


def test_a_dataset_that_fails_is_left_alone_for_longer_each_time(
    farm: DatasetStory, caplog: pytest.LogCaptureFixture
) -> None:
    farm.fail_images()
    farm.change(POISON["a job"])
    waits = list[float]()
    for _ in range(MAX_FAILURES - 1):
        farm.exporter.work(farm.id)
        seen = farm.dataset
        waits.append(round((seen.retry_at - seen.touched_at).total_seconds()))
        assert farm.due() == []
        farm.exporter.work(farm.id)
        assert farm.dataset == seen
        farm.skip_backoff()
        assert farm.due() == [farm.id]
    assert waits == [2, 4, 8, 16]
    assert len([one for one in caplog.records if one.exc_info]) == MAX_FAILURES - 1


def test_a_success_begins_a_new_count(farm: DatasetStory) -> None:
    """Also that there was nothing to do yet."""
    plan = "'{}'"
    farm.change(POISON["its row"])
    farm.work(MAX_FAILURES - 1)
    farm.change(f"UPDATE datasets SET plan = {plan} WHERE id = :id")
    farm.work()
    assert (farm.dataset.state, farm.dataset.failures, farm.dataset.retry_at) == ("waiting", 0, None)


def test_the_failure_of_a_call_that_lost_the_dataset_is_not_counted(farm: DatasetStory) -> None:
    with transaction(farm.database) as connection:
        assert datasets.acquire(connection, farm.id, 60)
    with transaction(farm.database) as connection:
        assert not datasets.count_failure(connection, farm.id, farm.id, "of another")
    assert farm.dataset.failures == 0


def test_an_outage_is_not_counted(farm: DatasetStory, settings: Settings) -> None:
    away = Storage(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}), attempts=1)
    farm.fail_images()
    exporter = Exporter(farm.database, away, CATALOG)
    with pytest.raises(Unavailable):
        exporter.work(farm.id)
    assert (farm.dataset.failures, farm.dataset.retry_at) == (0, None)


# Control workers that die of it


def test_a_dataset_that_kills_its_workers_fails_with_a_reference(
    farm: DatasetStory, settings: Settings, tmp_path: Path
) -> None:
    farm.fail_images()
    for deaths in range(1, MAX_FAILURES + 1):
        Broker(settings).export(farm.id)
        with locked(farm, "jobs"), running(tmp_path, settings, "control", SWEEP="false"):
            farm.until_begun(deaths)  # then it is killed
        farm.pass_silence()
    Broker(settings).export(farm.id)
    with running(tmp_path, settings, "control", SWEEP="false") as process:
        dataset = until(lambda: (found := farm.dataset).finished_at and found)
        assert process.poll() is None
    assert (dataset.state, dataset.error_code) == ("failed", "internal_error")
    reference = dataset.error_message.removesuffix(".").split()[-1]
    assert f"dataset_lost_workers dataset={farm.id} workers={MAX_FAILURES} reference={reference}" in log_of(process)
    assert farm.due() == []


def test_the_turn_after_some_dead_workers_may_succeed(farm: DatasetStory) -> None:
    """Also if there was nothing to do yet."""
    farm.lose_workers(MAX_FAILURES - 1)
    farm.work()
    assert (farm.dataset.state, farm.dataset.open_turns) == ("waiting", 0)


def test_a_turn_that_ends_without_success_has_not_died(farm: DatasetStory) -> None:
    """It fails for an unforeseen reason: that is counted as such."""
    farm.fail_images()
    farm.change(POISON["a job"])
    farm.lose_workers(2)
    farm.work()
    assert (farm.dataset.open_turns, farm.dataset.failures) == (0, 1)


def test_a_dataset_that_comes_further_is_never_given_up(farm: DatasetStory) -> None:
    """Images of a shard count when no turn has written so many of it before, and whole shards."""
    for images, open_turns in ((7, 1), (3, 5), (7, 5), (8, 1)):
        farm.lose_workers(MAX_FAILURES - 1)
        with transaction(farm.database) as connection:
            dataset = datasets.acquire(connection, farm.id, EXPORT_SILENCE_S)
            assert dataset
            assert datasets.record_written(connection, dataset, images)
        assert farm.dataset.open_turns == open_turns
        with transaction(farm.database) as connection:
            datasets.release(connection, dataset)
            datasets.end_turn(connection, dataset)
    farm.lose_workers(MAX_FAILURES - 1)
    with transaction(farm.database) as connection:
        dataset = datasets.acquire(connection, farm.id, EXPORT_SILENCE_S)
        assert dataset
        assert datasets.advance(connection, dataset, Step(2, ends_split=False, images=2, pictures=0))
    assert (farm.dataset.open_turns, farm.dataset.written) == (1, 0)


def test_who_was_too_slow_and_lost_the_dataset_has_not_died(farm: DatasetStory, settings: Settings) -> None:
    farm.fail_images()

    class Slow(Storage):
        def put(self, *arguments: Any) -> None:
            farm.pass_silence()
            farm.lose_workers(1)
            super().put(*arguments)

    farm.lose_workers(2)
    assert not Exporter(farm.database, Slow(settings), CATALOG).work(farm.id)
    assert (farm.dataset.open_turns, farm.dataset.shards) == (0, 0)
    assert farm.dataset.owner_id is not None  # of the other one


def test_a_turn_during_which_postgres_went_away_has_ended(
    farm: DatasetStory, settings: Settings, aside: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """However often: an outage is no death."""
    farm.fail_images()

    class Away(Storage):
        """Postgres is, once the exporter has begun to write."""

        def put(self, *arguments: Any) -> None:
            terminate_connections(settings)
            super().put(*arguments)

    with nobody_let_in(settings):
        work = aside.submit(Exporter(farm.database, Away(settings), CATALOG).work, farm.id)
        until(lambda: "database_away" in caplog.text)
    with pytest.raises(Unavailable):
        work.result(60)
    assert (farm.dataset.open_turns, farm.dataset.owner_id) == (0, None)
