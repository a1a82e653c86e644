"""A dataset that cannot be written for an unforeseen reason is tried again some times, then fails with an error."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, text

from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.layout import DatasetPlan
from common.db import transaction
from common.enums import ImageState
from common.errors import Unavailable
from common.failures import MAX_FAILURES
from common.storage import Storage
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import CATALOG, Story
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
