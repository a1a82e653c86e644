"""What a worker remembers between its claims: unpaid charges keep them fair at once, heads keep them short."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text

from common.config import Settings
from common.db import new_id
from common.queue.claim import Microbatch, Offer
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import Clock, Story
from tests.support.workers import MakeWorker, until_published
from worker.render.claimer import Claimer

PLENTY = [*PROMPTS, *PROMPTS]  # 40 images


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def impatient(database: Engine) -> Iterator[Engine]:
    """A connection that fails as soon as it waits for a lock."""
    engine = create_engine(database.url, connect_args={"options": "-c lock_timeout=1"})
    yield engine
    engine.dispose()


@contextmanager
def held(story: Story, *tenants: str) -> Iterator[None]:
    """An idle transaction that has locked the rows of these tenants."""
    with story.database.begin() as connection:
        connection.execute(
            text("SELECT FROM tenants WHERE name = ANY(:names) FOR NO KEY UPDATE"), {"names": list(tenants)}
        )
        yield


def paid(story: Story) -> dict[str, float]:
    return {row.name: row.virtual_time for row in story.rows("SELECT name, virtual_time FROM tenants")}


def claim(claimer: Claimer, capacity: int = 4) -> Microbatch:
    microbatch = claimer.claim(Offer(new_id(), {"mini-zh": capacity}), new_id(), 60)
    assert microbatch
    claimer.collect()
    return microbatch


def numbers(story: BatchStory, batch_id: UUID, microbatch: Microbatch) -> list[int]:
    """Which images of the batch these are, counted from 0."""
    ids = [image.id for image in story.images_of(batch_id)]
    return sorted(ids.index(image.id) for image in microbatch.images)


# Charges


def test_a_claim_does_not_wait_for_its_tenant_and_is_charged_later(
    story: Story, impatient: Engine, clock: Clock
) -> None:
    story.submit(tenant="held", count=16)
    claimer = Claimer(story.worker_id, impatient, clock)
    with held(story, "held"):
        assert len(claim(claimer).images) == 4
        clock.now += 1
        assert len(claim(claimer).images) == 4
        assert paid(story) == {"held": 0}
    claimer.collect()
    assert paid(story) == {"held": 0}  # not yet a second later
    clock.now += 1
    claimer.collect()
    assert paid(story) == {"held": 8}
    claimer.collect()
    clock.now += 1
    claimer.collect()
    assert paid(story) == {"held": 8}


def test_a_worker_renders_while_the_row_of_its_tenant_is_locked(story: Story, make_worker: MakeWorker) -> None:
    worker = make_worker(device="stub")
    job = story.submit(count=2)
    with held(story, "somebody"):
        worker.loop.run(60)
        until_published(worker)
        assert story.job(job).state == "succeeded"


def test_a_tenant_that_can_be_charged_is_not_held_up_by_one_that_cannot(
    story: Story, impatient: Engine, clock: Clock
) -> None:
    for tenant in ("held", "free"):
        story.submit(tenant=tenant, count=2)
    claimer = Claimer(story.worker_id, impatient, clock)
    with held(story, "held"):
        assert len(claim(claimer).images) == 4
        assert paid(story) == {"held": 0, "free": 2}
    clock.now += 1
    claimer.collect()
    assert paid(story) == {"held": 2, "free": 2}


def test_claims_are_fair_before_anything_is_charged(story: Story, impatient: Engine, clock: Clock) -> None:
    story.tenant("double", weight=2)
    for steps, tenant in ((2, "single"), (3, "double")):
        for _ in range(3):
            story.submit(tenant=tenant, count=30, steps=steps)
    claimer = Claimer(story.worker_id, impatient, clock)
    with held(story, "single", "double"):
        owners = [story.owner(claim(claimer)) for _ in range(30)]
        assert paid(story) == {"single": 0, "double": 0}
    assert owners.count("double") == pytest.approx(20, abs=1)


def test_a_tenant_that_comes_back_does_not_catch_up_on_what_is_unpaid(
    story: Story, impatient: Engine, clock: Clock
) -> None:
    for _ in range(5):
        story.submit(tenant="busy", count=40, steps=3)
    claimer = Claimer(story.worker_id, impatient, clock)
    story.tenant("late")
    with held(story, "busy", "late"):
        for _ in range(20):
            claim(claimer)
        story.submit(tenant="late", count=40)
        owners = [story.owner(claim(claimer)) for _ in range(10)]
    assert 4 <= owners.count("busy") <= 6


def test_a_worker_that_dies_loses_the_charges_of_one_second_at_most(
    story: Story, impatient: Engine, clock: Clock
) -> None:
    for _ in range(4):
        story.submit(count=8)
    claimer = Claimer(story.worker_id, impatient, clock)
    for _ in range(3):
        claim(claimer)
    assert paid(story) == {"somebody": 4}  # at most once a second
    clock.now += 1
    claim(claimer)
    assert paid(story) == {"somebody": 16}
    claim(claimer)
    claim(Claimer(story.worker_id, impatient, clock))  # the next process, after this one has died
    assert paid(story) == {"somebody": 20}


def test_many_workers_share_by_weight_although_each_charges_once_a_second(
    story: Story, impatient: Engine, clock: Clock
) -> None:
    """Ten claims a second of each of four workers: within the 5 % of `bench fairness`."""
    weights = {"one": 1, "other": 1, "double": 2}
    for steps, (tenant, weight) in enumerate(weights.items(), start=2):
        story.tenant(tenant, weight=weight)
        for _ in range(12 * weight + 8):
            story.submit(tenant=tenant, count=64, steps=steps)
    claimers = [Claimer(story.worker_id, impatient, clock) for _ in range(4)]
    owners = []
    for number in range(600):
        clock.now += 0.025
        owners.append(story.owner(claim(claimers[number % 4])))
    for tenant, weight in weights.items():
        assert owners.count(tenant) / len(owners) == pytest.approx(weight / 4, rel=0.05)


def test_many_claims_of_one_tenant_at_once_charge_all_of_them(story: Story, clock: Clock) -> None:
    for _ in range(10):
        story.submit(count=24)
    claimers = [Claimer(story.worker_id, story.database, clock) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda claimer: [claim(claimer) for _ in range(10)], claimers))
    clock.now += 1
    for claimer in claimers:
        claimer.collect()
    assert paid(story) == {"somebody": 160}


# Heads


@pytest.fixture
def batches(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def reader(batches: BatchStory, clock: Clock) -> Callable[[], Claimer]:
    return lambda: Claimer(batches.worker_id, batches.database, clock)


def test_what_was_given_back_before_the_head_is_claimed_within_seconds(
    batches: BatchStory, reader: Callable[[], Claimer], clock: Clock
) -> None:
    batch_id, claimer = batches.expanded(PLENTY), reader()
    first = claim(claimer)
    assert numbers(batches, batch_id, first) == [0, 1, 2, 3]
    assert numbers(batches, batch_id, claim(claimer)) == [4, 5, 6, 7]
    batches.release(first)
    clock.now += 2.9
    assert numbers(batches, batch_id, claim(claimer)) == [8, 9, 10, 11]  # read from the head on
    clock.now += 0.2
    assert numbers(batches, batch_id, claim(claimer)) == [0, 1, 2, 3]
    assert numbers(batches, batch_id, claim(claimer)) == [12, 13, 14, 15]


def test_what_was_given_back_is_claimed_at_once_when_nothing_else_waits(
    batches: BatchStory, reader: Callable[[], Claimer]
) -> None:
    batch_id, claimer = batches.expanded(PROMPTS[:4]), reader()
    claim(claimer, 2)
    second = claim(claimer, 2)
    claim(claimer, 8)
    batches.release(second)
    assert numbers(batches, batch_id, claim(claimer)) == [2, 3]
    assert claimer.claim(Offer(new_id(), {"mini-zh": 4}), new_id(), 60) is None


def test_each_full_read_finds_where_every_lane_begins(
    batches: BatchStory, reader: Callable[[], Claimer], clock: Clock
) -> None:
    """Also lanes of which this worker has taken nothing: others have."""
    ours, theirs = batches.expanded(PLENTY), batches.expanded(PLENTY, tenant="other")
    released = batches.claim(capacity=8)  # by another worker, so the next claims go to the other lane
    assert released
    claimer = reader()
    rest = claim(claimer)
    batches.release(released)
    later = [claim(claimer) for _ in range(4)]
    batch_of = {image.id: batch for batch in (ours, theirs) for image in batches.images_of(batch)}
    before = {image.id for image in released.images}
    assert {batch_of[image.id] for one in [rest, *later] for image in one.images} == {ours, theirs}
    assert not before & {image.id for one in later for image in one.images}
    clock.now += 3
    assert before & {image.id for _ in range(2) for image in claim(claimer).images}


def test_an_image_that_was_committed_late_is_not_passed_over(story: Story, clock: Clock) -> None:
    """Two requests make their ids in one order and commit in the other; outside of batches nothing says which."""
    claimer = Claimer(story.worker_id, story.database, clock)
    early = story.submit(count=1, steps=2)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET not_before = now() WHERE job_id = :job"), {"job": early})
    story.submit(count=8)
    claim(claimer)
    story.skip_backoff()
    assert early in {image.job_id for image in claim(claimer).images}
