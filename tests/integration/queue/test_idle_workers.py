"""Which models are to be woken: those with work that could be claimed, beside a worker that could claim it now."""

import pytest
from sqlalchemy import text

from common.accounts import tenants
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.queue import claim as claims
from common.queue import workers
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

BEAT_S = 5


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    """With a worker that is idle."""
    beat(story)
    return BatchStory(story, settings)


def beat(story: Story) -> None:
    with transaction(story.database) as connection:
        workers.heartbeat(connection, workers.Worker(story.worker_id, "w", {}, ["mini-zh"]), ready=True)


def to_wake(story: Story) -> list[str]:
    with transaction(story.database) as connection:
        return claims.models_with_idle_workers(connection, beat_s=BEAT_S)


def test_a_worker_that_is_silent_or_does_not_take_work_is_not_idle(farm: BatchStory) -> None:
    farm.submit()
    assert to_wake(farm) == ["mini-zh"]
    with farm.database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '14 s'"))
    assert to_wake(farm) == ["mini-zh"]  # slow
    with farm.database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '16 s'"))
    assert to_wake(farm) == []
    beat(farm)
    with transaction(farm.database) as connection:
        workers.drain(connection, farm.worker_id, "by hand")
    assert to_wake(farm) == []
    with transaction(farm.database) as connection:
        workers.resume(connection, farm.worker_id)
    assert to_wake(farm) == ["mini-zh"]


def test_work_that_cannot_be_claimed_wakes_nobody(farm: BatchStory) -> None:
    batch_id = farm.expanded()
    assert to_wake(farm) == ["mini-zh"]
    with transaction(farm.database) as connection:
        tenants.suspend(connection, farm.tenant())
    assert to_wake(farm) == []
    with transaction(farm.database) as connection:
        tenants.resume(connection, farm.tenant())
    assert to_wake(farm) == ["mini-zh"]
    farm.pause(batch_id)
    assert to_wake(farm) == []
    farm.resume(batch_id)
    assert to_wake(farm) == ["mini-zh"]
    farm.cancel_batch(batch_id)
    farm.submit(steps=3)
    farm.publish(farm.started(), ImageState.FAILED, error_code="out_of_memory", retryable=True)
    assert to_wake(farm) == []  # it backs off
    farm.skip_backoff()
    assert to_wake(farm) == ["mini-zh"]
