"""What a dataset contains: the ended images of its batch; for failed ones, those of the retries at its submission."""

from dataclasses import replace
from uuid import UUID

import pytest

from common.config import Settings
from common.datasets import contents
from common.datasets import lifecycle as datasets
from common.datasets.dataset import Dataset, Step
from common.datasets.layout import DatasetPlan
from common.db import new_id, transaction
from common.enums import ImageState
from common.queue import jobs
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

STORED, FAILED, FLAGGED = ImageState.STORED, ImageState.FAILED, ImageState.FLAGGED


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def render(farm: BatchStory, state: ImageState) -> None:
    """Render all queued images."""
    while microbatch := farm.claim(capacity=8):
        farm.start(microbatch)
        farm.publish(microbatch, state, **({"error_code": "nan_image"} if state == FAILED else {}))
    farm.end()


def failed(farm: BatchStory) -> UUID:
    """A batch of one prompt with two images, both failed."""
    batch_id = farm.expanded(["红色的圆形"])
    render(farm, FAILED)
    return batch_id


def retried(farm: BatchStory, batch_id: UUID, state: ImageState) -> UUID:
    """A retry of a batch, ended so."""
    retry_id = farm.retry(batch_id)
    farm.expander.work(retry_id, 60)
    render(farm, state)
    return retry_id


def single_retry(farm: BatchStory, batch_id: UUID, state: ImageState) -> UUID:
    """A single retry of the first job of a batch, ended so."""
    (parent, *_) = farm.jobs_of(batch_id)
    with transaction(farm.database) as connection:
        made = jobs.retry(connection, parent.id, farm.tenant())
    render(farm, state)
    return made.id


def asked(farm: BatchStory, batch_id: UUID) -> Dataset:
    with transaction(farm.database) as connection:
        dataset_id = datasets.submit(connection, farm.tenant(), batch_id, DatasetPlan())
        dataset = datasets.acquire(connection, dataset_id, 60)
    assert dataset is not None
    return dataset


def shown(farm: BatchStory, dataset: Dataset) -> list[tuple[str, UUID]]:
    """How its images ended, and of which job."""
    with transaction(farm.database) as connection:
        found = contents.finished_jobs(connection, dataset, 0, 100, 100)
    return [(image["state"], UUID(image["job_id"])) for job in found for image in job.images]


def first_job(farm: BatchStory, batch_id: UUID) -> UUID:
    return UUID(str(farm.jobs_of(batch_id)[0].id))


def test_a_single_retry_does_not_count_without_one_of_the_batch(farm: BatchStory) -> None:
    batch_id = failed(farm)
    single_retry(farm, batch_id, STORED)
    dataset = asked(farm, batch_id)
    assert list(dataset.retries) == []
    assert shown(farm, dataset) == [(FAILED, first_job(farm, batch_id))] * 2


@pytest.mark.parametrize("state", [STORED, FLAGGED, FAILED])
def test_a_single_retry_does_not_count_beside_one_of_the_batch(farm: BatchStory, state: ImageState) -> None:
    """Neither of a job of the batch nor of one of its retry."""
    batch_id = failed(farm)
    single_retry(farm, batch_id, STORED)
    retry_id = retried(farm, batch_id, state)
    single_retry(farm, retry_id, STORED)
    source = first_job(farm, batch_id if state == FAILED else retry_id)
    assert shown(farm, asked(farm, batch_id)) == [(state, source)] * 2


def test_a_running_single_retry_is_not_waited_for(farm: BatchStory) -> None:
    batch_id = failed(farm)
    retried(farm, batch_id, STORED)
    with transaction(farm.database) as connection:
        jobs.retry(connection, first_job(farm, batch_id), farm.tenant())
    dataset = asked(farm, batch_id)
    with transaction(farm.database) as connection:
        assert contents.finished_prefix(connection, dataset) == contents.FinishedPrefix(1, has_ended=True)


def test_a_retry_made_after_the_submission_belongs_to_the_next_dataset(farm: BatchStory) -> None:
    """Also one of a retry that does count; and it is not waited for."""
    batch_id = failed(farm)
    alone = asked(farm, batch_id)
    first = retried(farm, batch_id, FAILED)
    with_first = asked(farm, batch_id)
    second = farm.retry(first)
    farm.expander.work(second, 60)
    following = asked(farm, batch_id)
    with transaction(farm.database) as connection:
        reached = [contents.finished_prefix(connection, one).has_ended for one in (alone, with_first, following)]
        assert reached == [True, True, False]
        assert contents.finished_prefix(connection, following).position == 0
    render(farm, STORED)
    assert [list(one.retries) for one in (alone, with_first, following)] == [[], [first], [first, second]]
    was = [(FAILED, first_job(farm, batch_id))] * 2
    assert (shown(farm, alone), shown(farm, with_first)) == (was, was)
    assert shown(farm, following) == [(STORED, first_job(farm, second))] * 2


def test_a_dataset_is_continued_when_its_batch_or_a_retry_of_it_ends(farm: BatchStory) -> None:
    batch_id = failed(farm)
    alone = asked(farm, batch_id)
    retry_id = retried(farm, batch_id, STORED)
    both, other = asked(farm, batch_id), asked(farm, failed(farm))
    with transaction(farm.database) as connection:
        assert datasets.unfinished_of(connection, [retry_id]) == [both.id]
        assert set(datasets.unfinished_of(connection, [batch_id])) == {alone.id, both.id}
        assert datasets.unfinished_of(connection, [new_id()]) == []
        assert datasets.fail(connection, both, "unwritable", "It was ended.")
        assert set(datasets.unfinished_of(connection, [retry_id, other.batch_id])) == {other.id}


def test_only_ended_jobs_of_a_running_batch_are_read(farm: BatchStory) -> None:
    """Its second job has not ended; its third one has."""
    batch_id = farm.expanded(["红色的圆形", "绿色的圆形", "蓝色的圆形"])
    dataset = asked(farm, batch_id)
    first, second, third = (farm.started(capacity=2) for _ in range(3))
    farm.publish(first)
    farm.publish(third)
    with transaction(farm.database) as connection:
        prefix = contents.finished_prefix(connection, dataset)
        assert prefix == contents.FinishedPrefix(1, has_ended=False)
        assert [job.position for job in contents.finished_jobs(connection, dataset, 0, prefix.position, 100)] == [0]
    farm.publish(second)
    farm.end()
    with transaction(farm.database) as connection:
        prefix = contents.finished_prefix(connection, dataset)
        assert prefix == contents.FinishedPrefix(3, has_ended=True)
        assert [job.position for job in contents.finished_jobs(connection, dataset, 1, prefix.position, 1)] == [1]


def test_an_exporter_that_lost_its_ownership_changes_nothing(farm: BatchStory) -> None:
    dataset = asked(farm, failed(farm))
    before = farm.rows("SELECT * FROM datasets")
    other = replace(dataset, owner_id=new_id())
    step = Step(position=1, ends_split=True, images=2, pictures=0)
    with transaction(farm.database) as connection:
        assert datasets.acquire(connection, dataset.id, 60) is None
        assert datasets.advance(connection, other, step) is None
        assert not datasets.record_written(connection, other, 1)
        assert not datasets.finish(connection, other, "digest", 1, 1)
        assert not datasets.fail(connection, other, "code", "message")
        assert not datasets.release(connection, other)
    assert farm.rows("SELECT * FROM datasets") == before
