"""What a worker remembers of its own faults: for as long as they tell something of its host, and no longer."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from common.db import new_id, transaction
from common.queue import quarantines, sentence
from tests.support.stories import Story
from tests.support.workers import locked, quarantined, until_blocked
from worker.quarantine.quarantine import FAILED_CALLS, Quarantine

WHY = sentence("worker_lost")  # any sentence


@pytest.fixture
def odd() -> Quarantine:
    return Quarantine(new_id(), "odd", trial_s=3600)


def test_what_failed_before_an_operator_resumed_it_does_not_count_again(story: Story, odd: Quarantine) -> None:
    job = story.submit()
    story.publish(story.started())
    (image,) = story.images(job)
    for _ in range(FAILED_CALLS):
        odd.note_call([image.id])
    odd.sync(story.database)
    odd.sync(story.database)
    assert quarantined(story) == ["odd"]
    with transaction(story.database) as connection:
        quarantines.resume(connection, "odd")
    for _ in range(2):
        odd.sync(story.database)
    assert (quarantined(story), odd.is_active) == ([], False)


def test_a_fault_that_is_found_while_postgres_answers_is_not_forgotten(
    story: Story, odd: Quarantine, aside: ThreadPoolExecutor
) -> None:
    """The heartbeat asks whether it is quarantined, and its render thread finds out that it has to be."""
    with locked(story, "quarantines"):
        asking = aside.submit(odd.sync, story.database)
        until_blocked(story)
        odd.begin(WHY)
    asking.result(60)
    assert odd.is_active
    odd.sync(story.database)
    assert quarantined(story) == ["odd"]
