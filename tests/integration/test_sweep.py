"""The sweep puts right what was lost, step by step, and does no harm however often it runs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from common import workers
from common.config import Settings
from common.db import new_id, transaction
from common.queue import ENDED_CHANNEL, Messages, render_queue
from common.states import ImageState, JobState, WorkerState
from common.workers import Worker
from tests.stories import Story
from tests.workers import until
from worker.sweep import Sweep

LEASE_S = 0.4


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": LEASE_S, "sweep_s": 0.05})


@pytest.fixture
def sweep(quick: Settings, story: Story, clock: Clock) -> Sweep:
    return Sweep(quick, story.database, Messages(quick), clock)


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as client:
        yield client


def expire(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 s'"))


def use_up_attempts(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET attempts = 3 WHERE state = 'running'"))


def open_leases(story: Story) -> int:
    with story.database.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM leases WHERE ended_at IS NULL")).scalar_one())


def register(story: Story, models: list[str]) -> UUID:
    worker = Worker(new_id(), "idle", {}, models)
    with transaction(story.database) as connection:
        workers.beat(connection, worker, ready=True)
    return worker.id


def until_swept(sweep: Sweep, condition: Callable[[], object]) -> None:
    """Postgres must have been up for 1.5 lease times before anything is rescued."""

    def swept() -> object:
        sweep.once()
        return condition()

    until(swept, 10)


def test_images_of_a_dead_lease_go_back_to_the_queue(story: Story, sweep: Sweep) -> None:
    job = story.submit(count=2)
    story.started()
    expire(story)
    until_swept(sweep, lambda: not open_leases(story))
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 1)}


def test_a_job_that_ends_by_a_rescue_is_announced(story: Story, sweep: Sweep, client: redis.Redis) -> None:
    job = story.submit()
    story.started()
    use_up_attempts(story)
    expire(story)
    with client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(ENDED_CHANNEL)
        channel.get_message(timeout=5)
        until_swept(sweep, lambda: story.job(job).state == JobState.FAILED)
        heard = until(lambda: channel.get_message(timeout=0.1), 5)
        while str(job) not in heard["data"]:  # the channel is Redis-wide
            heard = until(lambda: channel.get_message(timeout=0.1), 5)
    assert story.job(job).error_code == "worker_lost"


def test_after_a_gap_of_its_own_nothing_is_rescued_for_a_while(story: Story, sweep: Sweep, clock: Clock) -> None:
    """What stopped this process, or cut it off, may have kept the workers from renewing too."""
    story.submit()
    until_swept(sweep, lambda: True)
    story.started()
    expire(story)
    clock.now += LEASE_S + 0.1
    for _ in range(3):
        sweep.once()
        clock.now += LEASE_S / 2 - 0.01
        assert open_leases(story) == 1
    clock.now += 0.1
    until_swept(sweep, lambda: not open_leases(story))


def test_images_whose_back_off_is_over_can_be_claimed(story: Story, sweep: Sweep) -> None:
    story.submit()
    story.publish(story.started(), state=ImageState.FAILED, error_code="nan_image", retryable=True)
    sweep.once()
    assert story.claim() is None
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET not_before = now()"))
    sweep.once()
    assert story.claim() is not None


def test_idle_workers_beside_waiting_work_are_woken(story: Story, sweep: Sweep, client: redis.Redis) -> None:
    register(story, ["mini-zh"])
    sweep.once()
    assert client.llen(render_queue("mini-zh")) == 0
    story.submit()
    story.submit(model="zh-v0")
    sweep.once()
    assert client.llen(render_queue("mini-zh")) == 1
    assert client.llen(render_queue("zh-v0")) == 0  # nobody serves it


def test_silent_workers_are_shown_as_stopped(story: Story, sweep: Sweep) -> None:
    silent, alive = register(story, []), register(story, [])
    with story.database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 hour' WHERE id = :w"), {"w": silent})
    sweep.once()
    with story.database.connect() as connection:
        states = {row.id: row.state for row in connection.execute(text("SELECT id, state FROM workers"))}
    assert states == {silent: WorkerState.STOPPED, alive: WorkerState.READY}


def test_old_idempotency_keys_are_forgotten(story: Story, sweep: Sweep) -> None:
    with story.database.begin() as connection:
        connection.execute(
            text("INSERT INTO idempotency_keys VALUES (:t, 'r', 'k', 'f', :j, now() - interval '25 hours')"),
            {"t": story.tenant(), "j": new_id()},
        )
    sweep.once()
    assert story.count("idempotency_keys") == 0


def test_a_step_that_fails_does_not_stop_the_others(story: Story, sweep: Sweep) -> None:
    silent = register(story, [])
    with story.database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 hour'"))
        connection.execute(text("ALTER TABLE leases RENAME TO elsewhere"))  # rescue and wake cannot work
    sweep.once()
    with story.database.connect() as connection:
        assert connection.execute(text("SELECT state FROM workers WHERE id = :w"), {"w": silent}).scalar() == "stopped"


def test_many_sweeps_at_once_do_as_one(story: Story, quick: Settings) -> None:
    jobs = [story.submit(count=2) for _ in range(5)]
    for _ in jobs:
        story.started(capacity=2)
    expire(story)
    stopping = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(Sweep(quick, story.database, Messages(quick)).run, stopping)
        try:
            until(lambda: not open_leases(story), 10)
        finally:
            stopping.set()
    assert {(i.state, i.attempts) for job in jobs for i in story.images(job)} == {(ImageState.QUEUED, 1)}
