"""A job changes its tier: what waits goes to another lane, whatever claims, publishes, cancels or pauses meanwhile."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, JobState, Tier
from common.errors import Conflict, NotFound
from common.queue import claim as claims
from common.queue import jobs, leases, tiers
from common.queue.claim import Offer
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from tests.support.workers import until_blocked


@contextmanager
def changing(story: Story, job: UUID, tier: Tier) -> Iterator[Connection]:
    """What happens here happens before the change is committed."""
    tenant = story.job(job).tenant_id
    with transaction(story.database) as connection:
        tiers.change(connection, job, tenant, tier)
        yield connection


def test_what_waits_goes_to_the_lane_of_the_new_tier(story: Story) -> None:
    other, job = story.submit(), story.submit(count=3, tier=Tier.BULK)
    moved = story.change_tier(job, Tier.INTERACTIVE)
    assert (list(moved.jobs), set(moved.models)) == ([job], {"mini-zh"})
    assert story.job(job).tier == Tier.INTERACTIVE
    assert story.lane_counts() == {"bulk": 0, "interactive": 3, "standard": 1}
    assert {image.job_id for image in story.claim(capacity=1).images} == {job}  # though the other one is older
    assert story.change_tier(other, Tier.STANDARD).jobs == ()


def test_only_the_tenant_of_a_job_that_has_not_ended_can_change_it(story: Story) -> None:
    job, stranger = story.submit(), story.tenant("stranger")
    with transaction(story.database) as connection, pytest.raises(NotFound):
        tiers.change(connection, job, stranger, Tier.BULK)
    story.publish(story.started())
    with pytest.raises(Conflict, match="succeeded"):
        story.change_tier(job, Tier.BULK)
    assert story.job(job).tier == Tier.STANDARD


def test_what_a_worker_holds_is_finished_where_it_is(story: Story) -> None:
    job = story.submit(count=5)
    held, claimed_ahead = story.started(capacity=2), story.claim(capacity=1)
    story.change_tier(job, Tier.INTERACTIVE)
    assert story.lane_counts() == {"standard": 3, "interactive": 2}
    story.publish(held)
    story.release(claimed_ahead)  # and waits where it was, until the tier is set again
    assert story.lane_counts() == {"standard": 1, "interactive": 2}
    assert story.change_tier(job, Tier.INTERACTIVE).jobs == (job,)
    assert story.lane_counts() == {"standard": 0, "interactive": 3}
    story.publish(story.started())
    assert (story.job(job).state, story.job(job).open) == (JobState.SUCCEEDED, 0)
    assert story.balances()


def test_what_backs_off_goes_along(story: Story) -> None:
    job = story.submit()
    story.publish(story.started(), ImageState.FAILED, error_code="out_of_memory", retryable=True)
    story.change_tier(job, Tier.BULK)
    story.skip_backoff()
    assert story.lane_counts() == {"standard": 0, "bulk": 1}
    assert story.claim() is not None


def test_a_claim_that_was_faster_keeps_its_images(story: Story, aside: ThreadPoolExecutor) -> None:
    job = story.submit(count=4)
    with transaction(story.database) as connection:
        held = claims.claim(connection, Offer(story.worker_id, {"mini-zh": 2}), new_id(), 60)
        change = aside.submit(story.change_tier, job, Tier.INTERACTIVE)
        until_blocked(story)
    assert change.result(20).jobs == (job,)
    assert story.lane_counts() == {"standard": 2, "interactive": 2}
    story.start(held)
    story.publish(held)
    assert story.lane_counts() == {"standard": 0, "interactive": 2}
    assert story.balances()


def test_a_claim_passes_by_what_is_being_moved(story: Story) -> None:
    job = story.submit(count=2)
    with changing(story, job, Tier.INTERACTIVE):
        assert story.claim() is None
    assert len(story.claim().images) == 2
    assert story.balances()


def test_the_sweep_steps_over_what_is_being_moved(story: Story) -> None:
    job = story.submit()
    story.publish(story.started(), ImageState.FAILED, error_code="out_of_memory", retryable=True)
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE images SET not_before = now()"))
    with changing(story, job, Tier.BULK), transaction(story.database) as connection:
        connection.execute(text("SET LOCAL lock_timeout = 1000"))
        assert leases.end_backoff(connection) == 0
    with transaction(story.database) as connection:
        assert leases.end_backoff(connection) == 1


def test_images_that_end_while_their_job_is_moved_are_counted_in_their_own_lane(
    story: Story, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=3)
    held = story.started(capacity=2)
    with changing(story, job, Tier.BULK):
        publish = aside.submit(story.publish, held)
        until_blocked(story)
    assert len(publish.result(20).images) == 2
    assert story.lane_counts() == {"standard": 0, "bulk": 1}
    assert story.balances()


def test_a_cancel_during_a_change_finds_all_its_images(story: Story, aside: ThreadPoolExecutor) -> None:
    job = story.submit(count=3)
    story.claim(capacity=1)
    with changing(story, job, Tier.BULK):
        cancel = aside.submit(story.cancel, job)
        until_blocked(story)
    assert cancel.result(20)
    assert story.lane_counts() == {"standard": 0, "bulk": 0}
    assert story.balances()


def test_a_change_after_a_cancel_that_was_faster_is_refused(story: Story, aside: ThreadPoolExecutor) -> None:
    job = story.submit()
    with transaction(story.database) as connection:
        jobs.lock_jobs_of_images(connection, [story.images(job)[0].id])
        change = aside.submit(story.change_tier, job, Tier.BULK)
        until_blocked(story)
        jobs.cancel_locked(connection, [job])
    with pytest.raises(Conflict, match="cancelled"):
        change.result(20)
    assert story.lane_counts() == {"standard": 0}


def test_two_who_move_jobs_to_each_others_lane_never_deadlock(story: Story) -> None:
    there = [story.submit(count=2, steps=steps, tier=Tier.BULK) for steps in (2, 3) for _ in range(10)]
    back = [story.submit(count=2, steps=steps, tier=Tier.INTERACTIVE) for steps in (3, 2) for _ in range(10)]
    with ThreadPoolExecutor(4) as pool:
        moves = [pool.submit(story.change_tier, job, Tier.INTERACTIVE) for job in there]
        moves += [pool.submit(story.change_tier, job, Tier.BULK) for job in back]
        moves += [pool.submit(story.claim, capacity=3) for _ in range(5)]
        for move in moves:
            move.result(20)
    assert sum(story.lane_counts().values()) == 80
    assert story.balances()


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def first_of(farm: BatchStory, batch: UUID) -> UUID:
    return UUID(str(farm.rows("SELECT id FROM jobs WHERE batch_id = :batch AND position = 0", batch=batch)[0].id))


def test_a_job_of_a_batch_stays_in_it(farm: BatchStory) -> None:
    batch = farm.expanded()
    job = first_of(farm, batch)
    farm.pause(batch)
    farm.change_tier(job, Tier.INTERACTIVE)
    assert farm.claim() is None
    farm.resume(batch)
    assert {image.job_id for image in farm.claim(capacity=2).images} == {job}
    farm.cancel_batch(batch)
    farm.expander.work(batch)
    assert farm.end() == [batch]
    assert farm.lane_counts() == {"bulk": 0, "interactive": 0}
    assert farm.balances()


def test_a_job_of_a_cancelled_batch_that_changes_its_tier_is_not_rendered(farm: BatchStory) -> None:
    """Before its jobs are settled: they have not ended yet."""
    batch = farm.expanded()
    farm.cancel_batch(batch)
    farm.change_tier(first_of(farm, batch), Tier.INTERACTIVE)
    assert farm.claim() is None
    farm.expander.work(batch)
    assert farm.end() == [batch]
    assert farm.balances()


def test_a_batch_that_is_paused_during_a_change_is_paused_as_a_whole(
    farm: BatchStory, aside: ThreadPoolExecutor
) -> None:
    batch = farm.expanded()
    with changing(farm, first_of(farm, batch), Tier.INTERACTIVE):
        pause = aside.submit(farm.pause, batch)
        until_blocked(farm)
    pause.result(20)
    assert farm.claim() is None


def test_a_batch_goes_on_expanding_in_its_own_tier(farm: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.control.batch_expander.CHUNK_IMAGES", 4)
    batch = farm.batch_of()
    while not farm.rows("SELECT id FROM jobs"):
        farm.expander.work(batch, 0)
    farm.change_tier(first_of(farm, batch), Tier.STANDARD)
    farm.expander.work(batch, 60)
    assert farm.lane_counts() == {"standard": 2, "bulk": 18}
    assert farm.balances()
