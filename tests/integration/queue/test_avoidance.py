"""An image is tried again by a worker that has not failed it, as long as there is one; meanwhile nothing else waits."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from common.db import new_id, transaction
from common.enums import ImageState
from common.queue import claim as claims
from common.queue import leases, quarantines, sentence, workers
from common.queue.claim import Microbatch
from tests.support.stories import Story

IDS = {name: new_id() for name in ("one", "two", "three")}


def beat(story: Story, *names: str, models: tuple[str, ...] = ("mini-zh",), ready: bool = True) -> None:
    with transaction(story.database) as connection:
        for name in names:
            workers.heartbeat(connection, workers.Worker(IDS[name], name, {}, models), ready=ready)


def fail(story: Story, microbatch: Microbatch, name: str) -> None:
    """As a worker does whose trial picture is good: an attempt of each image counts, with the worker's name."""
    story.publish(microbatch, ImageState.FAILED, error_code="poison", retryable=True, failed_by=name)
    story.skip_backoff()


def failed_by(story: Story, *names: str, count: int = 1, **fields: Any) -> UUID:
    job = story.submit(count=count, **fields)
    for name in names:
        fail(story, story.started(capacity=count), name)
    return job


def claimed(story: Story, name: str, **offer: Any) -> list[UUID]:
    """The jobs of what a worker claims; what it claims is released."""
    microbatch = story.claim(name=name, **offer)
    if microbatch is None:
        return []
    story.release(microbatch)
    return [image.job_id for image in microbatch.images]


def change(story: Story, statement: str) -> None:
    with transaction(story.database) as connection:
        connection.execute(text(statement))


def test_a_worker_leaves_an_image_that_it_failed_to_the_others(story: Story) -> None:
    beat(story, "one", "two")
    job = failed_by(story, "one")
    assert story.images(job)[0].failed_by == ["one"]
    assert claimed(story, "one") == []
    assert claimed(story, "two") == [job]


def test_the_others_in_its_lane_are_not_left(story: Story) -> None:
    beat(story, "one", "two")
    left = failed_by(story, "one")
    other = story.submit()
    assert claimed(story, "one") == [other]
    assert claimed(story, "two") == [left]  # alone: it is a suspect
    assert story.balances()


@pytest.mark.parametrize(
    "gone",
    [
        "UPDATE workers SET seen_at = now() - interval '16 s' WHERE name = 'two'",
        "UPDATE workers SET state = 'draining' WHERE name = 'two'",
        "UPDATE workers SET state = 'stopped' WHERE name = 'two'",
        "UPDATE workers SET models = '{zh-v0}' WHERE name = 'two'",
        "INSERT INTO quarantines (name, code, reason, retry_at) VALUES ('two', 'x', 'x', now() - interval '1 s')",
        "UPDATE images SET failed_by = '{one,two}'",
    ],
)
def test_without_another_worker_it_takes_the_image_again(story: Story, gone: str) -> None:
    beat(story, "one", "two")
    job = failed_by(story, "one")
    assert claimed(story, "one") == []
    change(story, gone)
    assert claimed(story, "one") == [job]


def test_three_attempts_on_three_workers_and_no_fourth(story: Story) -> None:
    beat(story, "one", "two", "three")
    job = story.submit()
    for name in IDS:
        for other in IDS:
            image = story.images(job)[0]
            assert claimed(story, other) == ([] if other in (image.failed_by or ()) else [job])
        fail(story, story.started(name=name), name)
    image = story.images(job)[0]
    assert (image.state, image.attempts, image.failed_by) == (ImageState.FAILED, 3, list(IDS))


def test_a_worker_that_fails_it_twice_is_named_once(story: Story) -> None:
    assert story.images(failed_by(story, "one", "one"))[0].failed_by == ["one"]


def test_what_is_given_back_or_stored_names_nobody(story: Story) -> None:
    job = story.submit(count=2)
    story.release(story.started(capacity=1))
    story.publish(story.started(capacity=1))
    assert [image.failed_by for image in story.images(job)] == [None, None]


def test_a_lost_worker_is_named_by_what_it_rendered_only(story: Story) -> None:
    story.worker_id = IDS["one"]
    beat(story, "one", "two")
    rendered, held = story.submit(steps=2), story.submit(steps=3)
    lost = [story.started(), story.claim()]
    for microbatch in lost:
        story.die(microbatch)
    assert (story.images(rendered)[0].failed_by, story.images(held)[0].failed_by) == (["one"], None)
    story.skip_backoff()
    assert claimed(story, "one") == [held]
    story.cancel(held)
    assert claimed(story, "one") == []
    assert claimed(story, "two") == [rendered]


def test_a_lost_worker_without_a_row_is_not_named(story: Story) -> None:
    job = story.submit()
    story.die(story.started())
    image = story.images(job)[0]
    assert (image.state, image.error_code, image.failed_by) == (ImageState.QUEUED, "worker_lost", None)


def test_what_failed_at_the_worker_s_own_code_goes_to_another(story: Story) -> None:
    beat(story, "one", "two")
    job = story.submit()
    microbatch = story.claim()
    with transaction(story.database) as connection:
        leases.fail(connection, microbatch.lease_id, [microbatch.images[0].id], "one", "It failed.")
    story.skip_backoff()
    assert claimed(story, "one") == []
    assert claimed(story, "two") == [job]


def test_only_those_are_woken_that_may_claim(story: Story) -> None:
    def to_wake() -> list[str]:
        with transaction(story.database) as connection:
            return claims.models_with_idle_workers(connection, beat_s=5)

    story.worker_id = IDS["two"]
    beat(story, "one", "two")
    failed_by(story, "one")
    assert to_wake() == ["mini-zh"]
    story.submit(model="zh-v0")
    assert story.claim(capacities={"zh-v0": 1})  # worker two is busy, and worker one leaves the image to it
    assert to_wake() == []
    story.submit()
    assert to_wake() == ["mini-zh"]
    with transaction(story.database) as connection:
        quarantines.quarantine(connection, "one", sentence("worker_silent"))
    assert to_wake() == []
