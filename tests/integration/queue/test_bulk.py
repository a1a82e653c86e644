"""All jobs that match a filter are counted, then cancelled, retried or moved: step by step, once, no later ones."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection

from common.db import transaction
from common.enums import ImageState, JobState, Tier
from common.queue import bulk as selection
from common.queue import jobs, leases, search
from common.queue.bulk import Step
from common.queue.search import JobFilter, Preview
from tests.support.stories import Story
from tests.support.workers import until_blocked

ALL = JobFilter()
STEP = 3


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "STEP_JOBS", STEP)


def preview(story: Story, chosen: JobFilter = ALL) -> Preview:
    tenant = story.tenant()
    with transaction(story.database) as connection:
        return search.preview(connection, tenant, chosen)


def steps(story: Story, act: Callable[..., Step], chosen: JobFilter, seen: Preview, **how: Any) -> Iterator[Step]:
    """One transaction after the other, to the end."""
    tenant, after = story.tenant(), None
    while True:
        with transaction(story.database) as connection:
            step = act(connection, tenant, chosen, seen.at, after, **how)
        yield step
        after = step.after
        if after is None:
            return


def changed(story: Story, act: Callable[..., Step], chosen: JobFilter, seen: Preview, **how: Any) -> list[UUID]:
    return [job for step in steps(story, act, chosen, seen, **how) for job in step.changed]


def left_alone(story: Story, act: Callable[..., Step], chosen: JobFilter, seen: Preview, **how: Any) -> dict[str, int]:
    (step,) = steps(story, act, chosen, seen, **how)
    assert step.changed == []
    return dict(step.left_alone)


def failed(story: Story, count: int, **submission: Any) -> list[UUID]:
    """Jobs that failed."""
    made = [story.submit(**submission) for _ in range(count)]
    story.publish(story.started(capacity=count), ImageState.FAILED, error_code="nan_image")
    return made


@contextmanager
def starting(story: Story) -> Iterator[Connection]:
    """What waits is started here, and that is committed at the end."""
    microbatch = story.claim()
    with transaction(story.database) as connection:
        leases.start(connection, microbatch)
        yield connection


def test_a_preview_counts_by_state_and_not_for_ever(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        story.submit()
    story.publish(story.started(capacity=1))
    story.submit(tenant="somebody else")
    seen = preview(story)
    assert (seen.states, seen.jobs, seen.is_all) == ({JobState.QUEUED: 2, JobState.SUCCEEDED: 1}, 3, True)
    assert preview(story, JobFilter(q="蓝色")).states == {}
    monkeypatch.setattr(search, "WINDOW", 2)
    assert not preview(story).is_all


def test_all_that_match_are_cancelled_but_none_that_came_later(story: Story) -> None:
    chosen = JobFilter(q="猫", tier=Tier.BULK)
    cats = [story.submit(prompt="一只猫", tier=Tier.BULK, count=2) for _ in range(2 * STEP + 1)]
    others = [story.submit(prompt="一只猫"), story.submit(prompt="花", tier=Tier.BULK)]
    others.append(story.submit(prompt="一只猫", tier=Tier.BULK, tenant="somebody else"))
    seen = preview(story, chosen)
    others.append(story.submit(prompt="一只猫", tier=Tier.BULK))
    assert [len(step.changed) for step in steps(story, selection.cancel, chosen, seen)] == [STEP, STEP, 1]
    assert {story.job(job).state for job in cats} == {JobState.CANCELLED}
    assert {story.job(job).state for job in others} == {JobState.QUEUED}
    assert changed(story, selection.cancel, chosen, seen) == []
    assert story.balances()


def test_what_does_not_match_any_more_when_its_turn_comes_is_left_alone(
    story: Story, aside: ThreadPoolExecutor
) -> None:
    chosen, job = JobFilter(state=JobState.QUEUED), story.submit()
    seen = preview(story, chosen)
    with starting(story):
        cancel = aside.submit(left_alone, story, selection.cancel, chosen, seen)
        until_blocked(story)
    assert cancel.result(20) == {"changed_meanwhile": 1}
    assert story.job(job).state == JobState.RUNNING


def test_all_that_have_not_ended_change_their_tier(story: Story) -> None:
    (done,) = failed(story, 1, tier=Tier.INTERACTIVE)
    bulk = [story.submit(tier=Tier.BULK, count=2, steps=2 + at % 2) for at in range(2 * STEP)]
    there = story.submit(tier=Tier.INTERACTIVE)
    held = story.started(capacity=1)
    seen = preview(story)
    assert sorted(changed(story, selection.change_tier, ALL, seen, tier=Tier.STANDARD)) == sorted([*bulk, there])
    assert story.lane_counts() == {"bulk": 0, "interactive": 1, "standard": 4 * STEP}
    assert story.job(done).tier == Tier.INTERACTIVE
    assert changed(story, selection.change_tier, ALL, seen, tier=Tier.STANDARD) == []
    story.publish(held)
    assert story.balances()


def test_what_failed_or_was_cancelled_is_retried_once(story: Story) -> None:
    parents = [*failed(story, STEP, tier=Tier.BULK), story.submit(count=3, steps=4)]
    story.cancel(parents[-1])
    story.submit(steps=5)
    story.publish(story.started())
    waiting, seen = story.submit(steps=6), preview(story)
    how = {"models": {"mini-zh"}, "request_id": "asked for"}
    children = changed(story, selection.retry, ALL, seen, **how)
    assert [story.job(child).parent_id for child in children] == parents
    for made, parent in zip(map(story.job, children), map(story.job, parents), strict=True):
        assert (made.state, made.request_id) == (JobState.QUEUED, "asked for")
        assert (made.recipe, made.tier, made.batch_id) == (parent.recipe, parent.tier, None)
        assert [image._mapping["index"] for image in story.images(made.id)] == list(range(made.open))
        assert len(story.images(parent.id)) == made.open
    assert changed(story, selection.retry, ALL, seen, **how) == []
    assert sum(story.lane_counts().values()) == STEP + 3 + 1
    assert story.balances()
    assert story.job(waiting).state == JobState.QUEUED
    for child in children:
        story.cancel(child)
    assert changed(story, selection.retry, ALL, preview(story), **how) != []  # theirs now, not their parents' again


def test_two_who_retry_the_same_at_once_make_one_job_of_each(story: Story) -> None:
    parents = failed(story, STEP)
    seen = preview(story)
    with ThreadPoolExecutor(4) as pool:
        retried = [pool.submit(changed, story, selection.retry, ALL, seen, models={"mini-zh"}) for _ in range(4)]
        made = [job for one in retried for job in one.result(20)]
    assert len(made) == len(parents)
    assert len({story.job(job).parent_id for job in made}) == len(parents)
    assert story.balances()


def test_what_is_not_retried_is_counted_by_why(story: Story) -> None:
    first, _ = failed(story, 2)
    seen = preview(story)
    assert left_alone(story, selection.retry, ALL, seen, models=()) == {"model_not_allowed": 2}
    with transaction(story.database) as connection:
        jobs.retry(connection, first, story.tenant())
    assert left_alone(story, selection.retry, ALL, seen, models=()) == {"retried_before": 1, "model_not_allowed": 1}
