"""The sweep repairs what was lost, step by step, and changes nothing else however often it runs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from common import uploads
from common.batches import lifecycle as batches
from common.batches.plan import Plan
from common.broker import CANCELLED_CHANNEL, CHANGED_CHANNEL, Broker, render_queue
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, JobState, WorkerState
from common.queue import workers
from common.queue.claim import Microbatch
from common.queue.workers import Worker
from common.storage import Storage, image_key, upload_key
from common.uploads import Upload
from tests.support.stories import Clock, Story
from tests.support.workers import bucket_of, until
from worker.control.sweep import Sweep

LEASE_S = 0.4


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": LEASE_S, "sweep_s": 0.05})


@pytest.fixture
def sweep(quick: Settings, story: Story, clock: Clock) -> Sweep:
    return Sweep(quick, story.database, Broker(quick), Storage(quick), clock)


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as client:
        yield client


def expire(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 s'"))


def age_leases(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE leases SET ended_at = ended_at - interval '1 hour'"))


def upload(microbatch: Microbatch, settings: Settings) -> None:
    for image in microbatch.images:
        key = image_key(image.job_id, image.index, microbatch.lease_id, "png")
        Storage(settings).put(key, b"x", "image/png")


def use_up_attempts(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET attempts = 3 WHERE state = 'running'"))


def test_what_was_used_is_folded_into_days(sweep: Sweep, story: Story) -> None:
    story.submit(count=2)
    for _ in range(2):
        story.publish(story.started(capacity=1))
    assert (story.count("usage_entries"), story.count("usage_days")) == (2, 0)
    for _ in range(2):
        sweep.once()
        assert (story.count("usage_entries"), story.rows("SELECT images FROM usage_days")[0].images) == (0, 2)


def open_leases(story: Story) -> int:
    with story.database.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM leases WHERE ended_at IS NULL")).scalar_one())


def register(story: Story, models: list[str]) -> UUID:
    worker = Worker(new_id(), "idle", {}, models)
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    return worker.id


def until_swept(sweep: Sweep, condition: Callable[[], object]) -> None:
    """Postgres must have been up for 1.5 lease times before anything is rescued."""

    def swept() -> object:
        sweep.once()
        return condition()

    until(swept)


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
        channel.subscribe(CHANGED_CHANNEL)
        channel.get_message(timeout=5)
        until_swept(sweep, lambda: story.job(job).state == JobState.FAILED)
        message = until(lambda: channel.get_message(timeout=0.1))
        while str(job) not in message["data"]:  # the channel is Redis-wide
            message = until(lambda: channel.get_message(timeout=0.1))
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
    story.publish(story.started(), state=ImageState.FAILED, error_code="out_of_memory", retryable=True)
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


def test_silent_workers_are_marked_as_stopped(story: Story, sweep: Sweep) -> None:
    silent, alive = register(story, []), register(story, [])
    with story.database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 hour' WHERE id = :w"), {"w": silent})
    sweep.once()
    with story.database.connect() as connection:
        states = {row.id: row.state for row in connection.execute(text("SELECT id, state FROM workers"))}
    assert states == {silent: WorkerState.STOPPED, alive: WorkerState.READY}


def silent_for(story: Story, worker: UUID, seconds: float) -> None:
    with story.database.begin() as connection:
        connection.execute(
            text("UPDATE workers SET seen_at = now() - make_interval(secs => :s) WHERE id = :w"),
            {"w": worker, "s": seconds},
        )


@pytest.mark.parametrize(("lease_s", "beat_s"), [(2, 20), (20, 2)])
def test_a_worker_may_be_silent_for_three_beats_or_leases_and_no_longer(
    story: Story, settings: Settings, lease_s: float, beat_s: float
) -> None:
    own = settings.model_copy(update={"lease_s": lease_s, "beat_s": beat_s})
    sweep = Sweep(own, story.database, Broker(own), Storage(own))
    late, silent = register(story, []), register(story, [])
    silent_for(story, late, 50)
    silent_for(story, silent, 61)
    sweep.prune()
    states = {row.id: (row.state, row.reason) for row in story.rows("SELECT id, state, reason FROM workers")}
    assert states == {late: (WorkerState.READY, None), silent: (WorkerState.STOPPED, workers.IS_SILENT)}


def test_a_worker_that_stopped_is_shown_for_a_day(story: Story, sweep: Sweep) -> None:
    shown, deleted = register(story, []), register(story, [])
    for worker, hours in ((shown, 23.9), (deleted, 24.1)):
        with transaction(story.database) as connection:
            workers.stop(connection, worker, "the day is over")
        silent_for(story, worker, 3600 * hours)
    sweep.delete_expired()
    assert [row.id for row in story.rows("SELECT id FROM workers")] == [shown]


def test_a_worker_is_pruned_once_and_not_after_it_has_stopped(story: Story) -> None:
    stopped, silent = register(story, []), register(story, [])
    with transaction(story.database) as connection:
        workers.stop(connection, stopped, "the day is over")
    for worker in (stopped, silent):
        silent_for(story, worker, 3600)
    with transaction(story.database) as connection:
        assert workers.prune(connection, 60) == [silent]
        assert workers.prune(connection, 60) == []
    reasons = {row.id: row.reason for row in story.rows("SELECT id, reason FROM workers")}
    assert reasons == {stopped: "the day is over", silent: workers.IS_SILENT}


def test_idempotency_keys_are_deleted_after_a_day(story: Story, sweep: Sweep) -> None:
    for key, age in (("kept", "23:59:00"), ("old", "24:00:01")):
        with story.database.begin() as connection:
            connection.execute(
                text("INSERT INTO idempotency_keys VALUES (:t, 'r', :k, 'f', :j, now() - cast(:age AS interval))"),
                {"t": story.tenant(), "k": key, "j": new_id(), "age": age},
            )
    sweep.once()
    assert [row.key for row in story.rows("SELECT key FROM idempotency_keys")] == ["kept"]


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
            pool.submit(Sweep(quick, story.database, Broker(quick), Storage(quick)).run, stopping)
        try:
            until(lambda: not open_leases(story))
        finally:
            stopping.set()
    assert {(i.state, i.attempts) for job in jobs for i in story.images(job)} == {(ImageState.QUEUED, 1)}


def test_jobs_end_at_their_deadline_and_their_workers_are_notified(
    story: Story, sweep: Sweep, client: redis.Redis
) -> None:
    job = story.submit(expires_after_s=-1)
    story.started()
    channels: set[str] = set()

    def listen() -> bool:
        message = channel.get_message(timeout=0.1)
        if message and str(job) in message["data"]:
            channels.add(message["channel"])
        return channels == {CHANGED_CHANNEL, CANCELLED_CHANNEL}

    with client.pubsub() as channel:
        channel.subscribe(CHANGED_CHANNEL, CANCELLED_CHANNEL)
        until(lambda: (channel.get_message(timeout=5) or {}).get("data") == 2)
        sweep.once()
        until(listen)
    assert (story.job(job).state, story.job(job).error_code) == (JobState.FAILED, "expired")


def test_what_a_dead_lease_stored_is_deleted_and_what_is_visible_stays(
    story: Story, sweep: Sweep, quick: Settings
) -> None:
    job = story.submit(count=2)
    upload(lost := story.started(), quick)
    story.die(lost)
    story.skip_backoff()
    for again in (story.started(), story.started()):
        upload(again, quick)
        story.publish(again)
    sweep.clean()
    assert len(bucket_of(quick)) == 4  # too soon: the lost worker may still be uploading
    age_leases(story)
    sweep.clean()
    assert bucket_of(quick).keys() == {image.key for image in story.images(job)}
    assert story.leftovers() == {}


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_leftovers_are_deleted_under_their_own_format_four_lease_times_after_the_end(
    story: Story, quick: Settings, format: str
) -> None:
    story.submit(count=2, format=format)
    died = story.started()
    keys = {image_key(image.job_id, image.index, died.lease_id, format) for image in died.images}
    for key in keys:
        Storage(quick).put(key, b"x", f"image/{format}")
    story.die(died)
    sweep = Sweep(quick.model_copy(update={"lease_s": 15}), story.database, Broker(quick), Storage(quick))
    for age, left in ((55, keys), (61, set())):
        with story.database.begin() as connection:
            connection.execute(text("UPDATE leases SET ended_at = now() - make_interval(secs => :s)"), {"s": age})
        sweep.clean()
        assert bucket_of(quick).keys() == left


def test_an_unavailable_store_stops_only_the_cleaning(story: Story, quick: Settings, clock: Clock) -> None:
    away = quick.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    story.submit()
    story.die(story.started())
    age_leases(story)
    sweep = Sweep(quick, story.database, Broker(quick), Storage(away, attempts=1), clock)
    sweep.clean()
    assert len(story.leftovers()) == 1
    Sweep(quick, story.database, Broker(quick), Storage(quick), clock).clean()
    assert story.leftovers() == {}


def test_unused_uploads_are_deleted_and_those_of_batches_stay(story: Story, quick: Settings, sweep: Sweep) -> None:
    tenant_id = story.tenant()
    old, almost_old, fresh, of_a_batch = (Upload(new_id(), "txt", 1, "0") for _ in range(4))
    for upload in (old, almost_old, fresh, of_a_batch):
        with transaction(story.database) as connection:
            uploads.record(connection, tenant_id, upload)
        Storage(quick).put(upload_key(upload.id, "txt"), b"x", "text/plain")
    with transaction(story.database) as connection:
        batches.submit(connection, tenant_id, of_a_batch.id, Plan(images_per_prompt=1, seed=1))
        age = text("UPDATE uploads SET used_at = now() - interval '30 days 1 s' WHERE id <> :fresh")
        connection.execute(age, {"fresh": fresh.id})
        almost = text("UPDATE uploads SET used_at = now() - interval '29 days 23:59:00' WHERE id = :id")
        connection.execute(almost, {"id": almost_old.id})
    sweep.clean()
    left = {upload.id for upload in (almost_old, fresh, of_a_batch)}
    assert {row.id for row in story.rows("SELECT id FROM uploads")} == left
    assert bucket_of(quick).keys() == {upload_key(upload, "txt") for upload in left}


def test_each_minute_the_sweep_samples_the_counters_of_the_lanes(story: Story, sweep: Sweep) -> None:
    story.submit(count=2)
    story.publish(story.started())
    sweep.once()
    sweep.once()
    (sample,) = story.rows("SELECT DISTINCT ON (model, tier) * FROM lane_samples")
    assert (sample.model, sample.tier, sample.stored) == ("mini-zh", "standard", 2)
    pending = "SELECT gin_clean_pending_list('jobs_prompt_idx') AS pages"
    assert story.rows(pending)[0].pages == 0, "The sweep has sorted new prompts into their index."
