"""The render loop in this process, with the stub as its pipeline and real servers around it."""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
import redis
from PIL import Image as PillowImage
from sqlalchemy import Row, text

from common.broker import Broker, render_queue
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, JobState, Tier
from common.queue import jobs, workers
from common.recipes.picture_key import of_one
from common.recipes.recipe import canonical_json
from common.storage import sha256
from tests.support.stories import CATALOG, Story
from tests.support.workers import SLOW, MakeWorker, bucket_of, ready_workers, until, until_published
from worker.render.inflight import RenderedMicrobatch, State
from worker.render.worker import RenderWorker


def work(worker: RenderWorker, seconds: float = 30) -> None:
    """Render what there is and wait until it is published."""
    worker.loop.run(seconds)
    until_published(worker)


def leases(story: Story) -> Sequence[Row[Any]]:
    with story.database.connect() as connection:
        return connection.execute(text("SELECT * FROM leases ORDER BY claimed_at")).all()


def expire_leases(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 s'"))


def until_rendering(worker: RenderWorker, step: int = 2) -> None:
    until(lambda: worker.render_thread.current and worker.render_thread.current.step >= step)


# What is rendered


def test_a_model_that_was_just_loaded_stays_though_others_have_waited_long(
    story: Story, make_worker: MakeWorker
) -> None:
    for steps in (1, 2, 3):
        for model in ("mini-zh", "zh-v0"):
            story.submit(model=model, width=64, height=64, steps=steps)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = now() - interval '1 hour'"))
    work(make_worker())
    models = [
        story.job(image.job_id).model
        for lease in leases(story)
        for image in story.rows("SELECT job_id FROM images WHERE lease_id = :id", id=lease.id)
    ]
    assert len(models) == 6
    assert sum(before != after for before, after in pairwise(models)) == 1


def test_a_job_is_rendered_stored_and_published(story: Story, settings: Settings, make_worker: MakeWorker) -> None:
    job = story.submit(count=10, seed=5)
    work(make_worker())
    assert story.job(job).state == JobState.SUCCEEDED
    bucket = bucket_of(settings)
    assert len(bucket) == 10
    recipe = story.recipe(count=10, seed=5)
    for image in story.images(job):
        data = bucket[image.key]
        assert (image.state, image.attempts) == (ImageState.STORED, 1)
        assert (image.sha256, image.bytes) == (sha256(data), len(data))
        assert image.render_ms is not None
        assert image.store_ms is not None
        texts = PillowImage.open(io.BytesIO(data)).info
        index = image._mapping["index"]  # Row.index is a method of tuples
        assert texts["recipe"] == canonical_json(of_one(recipe, index).model_dump(mode="json"))
        assert (texts["seed"], texts["key"]) == (str(5 + index), image.picture_key.hex())
        assert len(texts["revision"]) == 40
        assert json.loads(texts["worker"])["device"] == "stub"
        assert texts["software"].startswith("Huafang ")


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_other_formats_are_stored_as_such(
    story: Story, settings: Settings, make_worker: MakeWorker, format: str
) -> None:
    story.submit(format=format)
    work(make_worker())
    ((key, data),) = bucket_of(settings).items()
    assert key.endswith(f".{format}")
    assert PillowImage.open(io.BytesIO(data)).format == format.upper()


def test_the_same_recipe_and_seed_give_the_same_bytes(story: Story, make_worker: MakeWorker) -> None:
    first, second = story.submit(count=2, seed=7), story.submit(tenant="somebody else", count=2, seed=7)
    work(make_worker())
    assert [image.sha256 for image in story.images(first)] == [image.sha256 for image in story.images(second)]
    assert len({image.sha256 for image in story.images(first)}) == 2


def test_a_picture_has_one_key_and_the_same_bytes_whatever_its_siblings(story: Story, make_worker: MakeWorker) -> None:
    two, four = story.submit(count=2, seed=7), story.submit(count=4, seed=7)
    work(make_worker())

    def pictures(job: UUID) -> list[tuple[str, str]]:
        return [(image.picture_key.hex(), image.sha256) for image in story.images(job)]

    assert pictures(two) == pictures(four)[:2]
    assert len(set(pictures(four))) == 4


def test_compatible_images_of_several_tenants_share_a_microbatch(story: Story, make_worker: MakeWorker) -> None:
    for tenant in ("one", "two", "three"):
        story.submit(tenant=tenant, count=2)
    story.submit(tenant="four", steps=5)
    work(make_worker())
    assert sorted(len(lease.image_ids) for lease in leases(story)) == [1, 6]


def test_the_next_microbatch_is_started_before_the_last_is_published(story: Story, make_worker: MakeWorker) -> None:
    story.submit(count=20, steps=5)
    work(make_worker(device=SLOW))
    first, second, third = leases(story)
    assert first.claimed_at < second.claimed_at < first.ended_at
    assert second.claimed_at < third.claimed_at < second.ended_at
    assert second.started_at < first.ended_at


def test_the_device_renders_on_while_images_are_handed_over(
    story: Story, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.submit(count=16, steps=10)
    worker = make_worker(device=SLOW)
    submit = worker.uploader.submit

    def submit_late(rendered: RenderedMicrobatch) -> None:
        monkeypatch.undo()
        until(lambda: worker.render_thread.current.microbatch is not rendered.microbatch)
        submit(rendered)

    monkeypatch.setattr(worker.uploader, "submit", submit_late)
    work(worker)
    assert [lease.outcome for lease in leases(story)] == ["published", "published"]


def test_a_second_drain_releases_what_was_started_ahead_too(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=16, steps=10)
    worker = make_worker(device=SLOW)
    working = aside.submit(worker.loop.run)
    until(lambda: [one.state for one in list(worker.loop._inflight.values())] == [State.STARTED, State.STARTED])
    worker.loop.drain()
    worker.loop.drain()
    working.result(60)
    until_published(worker)
    assert {lease.outcome for lease in leases(story)} <= {"released", "published"}
    ends = {(image.state, image.attempts, image.lease_id is None) for image in story.images(job)}
    assert ends <= {(ImageState.QUEUED, 0, True), (ImageState.STORED, 1, False)}
    assert (ImageState.QUEUED, 0, True) in ends


def test_a_worker_that_finds_more_than_it_can_take_wakes_another(
    story: Story, settings: Settings, make_worker: MakeWorker
) -> None:
    """A message may stand for many jobs, and there may be many idle workers."""
    worker = make_worker()
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as messages:
        story.submit(count=7)
        worker.loop.run()
        assert messages.llen(render_queue("mini-zh")) == 0
        story.submit(count=30)
        worker.loop.run()
        assert messages.llen(render_queue("mini-zh")) == 1


def test_jobs_that_come_together_share_a_message(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is sent at once, and one for the others when the burst is over: it comes after all their commits."""
    monkeypatch.setattr("common.broker.BURST_S", 1)
    messages = Broker(settings)
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as sent:
        for _ in range(50):
            messages.wake_soon("mini-zh", new_id(), Tier.STANDARD)
        messages.wake_soon("zh-v0", new_id(), Tier.STANDARD)
        assert sent.llen(render_queue("mini-zh")) == sent.llen(render_queue("zh-v0")) == 1
        until(lambda: sent.llen(render_queue("mini-zh")) == 2)


def test_nothing_is_claimed_when_the_time_is_up(story: Story, make_worker: MakeWorker) -> None:
    story.submit(count=20, steps=5)
    worker = make_worker(device=SLOW)
    worker.heartbeat.beat()
    assert worker.loop.run(0.01)  # the time was up
    until_published(worker)
    assert len(leases(story)) == 1
    assert not worker.loop.run(30)


def test_a_lower_tier_gets_one_microbatch_in_twenty(story: Story, make_worker: MakeWorker) -> None:
    bulk = story.submit(tier=Tier.BULK, steps=1)
    for steps in range(2, 24):
        story.submit(tier=Tier.INTERACTIVE, steps=steps)  # each needs a microbatch of its own
    work(make_worker(device="stub:0"))
    owners = [story.images(bulk)[0].lease_id == lease.id for lease in leases(story)]
    assert owners.index(True) == 19


# Cancelled and lost


@pytest.mark.parametrize("news", ["redis", "heartbeat"])
def test_a_cancelled_job_frees_the_worker_within_a_step(
    story: Story,
    settings: Settings,
    make_worker: MakeWorker,
    aside: ThreadPoolExecutor,
    news: str,
) -> None:
    job = story.submit(count=2, steps=150)
    worker = make_worker(device=SLOW)
    if news == "redis":
        worker.notifications.start()
    working = aside.submit(work, worker)
    until_rendering(worker)
    rendering = worker.render_thread.current
    with transaction(story.database) as connection:
        jobs.cancel(connection, job)
    if news == "redis":
        until(lambda: Broker(settings).announce_cancelled([job]))
    else:
        worker.heartbeat.beat()
    until(lambda: not worker.held_leases.wanted(rendering.microbatch.lease_id))
    step = rendering.step
    working.result(60)
    assert rendering.step <= step + 1 < 150
    assert story.job(job).state == JobState.CANCELLED
    assert bucket_of(settings) == {}
    assert [lease.outcome for lease in leases(story)] == ["released"]


def test_a_cancelled_image_beside_wanted_ones_is_rendered_and_discarded(
    story: Story, settings: Settings, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    unwanted, wanted = story.submit(steps=20), story.submit(tenant="other", steps=20)
    worker = make_worker(device=SLOW)
    working = aside.submit(work, worker)
    until_rendering(worker)
    with transaction(story.database) as connection:
        jobs.cancel(connection, unwanted)  # the worker hears nothing of it: the fence must hold alone
    working.result(60)
    assert (story.job(unwanted).state, story.job(wanted).state) == (JobState.CANCELLED, JobState.SUCCEEDED)
    assert list(bucket_of(settings)) == [story.images(wanted)[0].key]


def test_a_lost_lease_changes_nothing_and_its_bytes_are_deleted(
    story: Story, settings: Settings, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    """A worker was frozen while another took over; it revives and finishes, and changes nothing."""
    job = story.submit(count=2, steps=40)
    frozen, other = make_worker(device=SLOW), make_worker()
    working = aside.submit(work, frozen)
    until_rendering(frozen)
    expire_leases(story)
    assert story.rescue().images == 2
    story.skip_backoff()
    work(other)
    before = story.images(job)
    assert {image.attempts for image in before} == {2}
    working.result(60)
    assert story.images(job) == before
    assert set(bucket_of(settings)) == {image.key for image in before}
    assert [lease.outcome for lease in leases(story)] == ["lost", "published", "published"]  # each alone, this time


def test_a_lost_lease_stops_the_rendering_at_the_next_heartbeat(
    story: Story, settings: Settings, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    story.submit(steps=150)
    worker = make_worker(device=SLOW)
    working = aside.submit(work, worker)
    until_rendering(worker)
    rendering = worker.render_thread.current
    expire_leases(story)
    story.rescue()
    worker.heartbeat.beat()
    working.result(60)
    assert rendering.step < 150
    assert bucket_of(settings) == {}


# What goes wrong


@pytest.mark.parametrize(("marker", "reason"), [("#flagged", None), ("#unchecked", "unchecked")])
def test_a_flagged_image_is_not_stored(
    story: Story, settings: Settings, make_worker: MakeWorker, marker: str, reason: str | None
) -> None:
    job = story.submit(prompt=f"圆 {marker}")
    work(make_worker())
    image = story.images(job)[0]
    assert (image.state, image.error_code) == (ImageState.FLAGGED, reason)
    assert story.job(job).state == JobState.SUCCEEDED
    assert bucket_of(settings) == {}


@pytest.mark.parametrize(
    ("trouble", "code", "attempts"), [("#nan", "nan_image", [1]), ("#oom", "out_of_memory", [1, 2, 3])]
)
def test_a_poison_image_fails_alone_after_as_many_attempts_as_could_help(
    story: Story, make_worker: MakeWorker, trouble: str, code: str, attempts: list[int]
) -> None:
    poison, neighbour = story.submit(prompt=f"圆 {trouble}"), story.submit(count=3)
    worker = make_worker()
    for attempt in attempts:
        work(worker)
        assert story.images(poison)[0].attempts == attempt
        story.skip_backoff()
    assert (story.job(poison).state, story.job(poison).error_code) == (JobState.FAILED, code)
    assert {(image.state, image.attempts) for image in story.images(neighbour)} == {(ImageState.STORED, 1)}


# Draining


def test_a_drain_finishes_what_it_can_and_releases_what_it_claimed_ahead(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=12, steps=20)
    worker = make_worker(device=SLOW, drain_s=20)
    working = aside.submit(work, worker)
    until(lambda: len(leases(story)) == 2)
    worker.loop.drain()
    working.result(60)
    assert [lease.outcome for lease in leases(story)] == ["published", "released"]
    assert sorted((image.state, image.attempts) for image in story.images(job)) == [
        *[(ImageState.QUEUED, 0)] * 4,
        *[(ImageState.STORED, 1)] * 8,
    ]


def test_a_drain_releases_at_once_what_it_cannot_finish(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=2, steps=150)
    worker = make_worker(device="stub:0.5", drain_s=60)  # it would render for 75 s
    working = aside.submit(work, worker)
    until_rendering(worker)
    worker.loop.drain()
    working.result(45)  # it did not wait for the time to be up
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}


def test_a_pause_lasts_until_the_worker_is_resumed(story: Story, make_worker: MakeWorker) -> None:
    worker = make_worker(drain_s=0)
    worker.heartbeat.beat()
    with transaction(story.database) as connection:
        workers.drain(connection, worker.id, "a new driver")
    worker.heartbeat.beat()
    job = story.submit()
    work(worker)
    assert story.job(job).state == JobState.QUEUED
    with transaction(story.database) as connection:
        workers.resume(connection, worker.id)
    worker.heartbeat.beat()
    work(worker)
    assert story.job(job).state == JobState.SUCCEEDED


# What a worker says of itself


def test_a_started_worker_reports_itself_renders_unasked_and_stops(story: Story, settings: Settings) -> None:
    worker = RenderWorker(settings.model_copy(update={"beat_s": 0.1, "models": "mini-zh"}), CATALOG)
    worker.start()
    row = until(lambda: ready_workers(story))[0]
    assert (row["id"], row["models"], row["resident"], row["refusals"]) == (worker.id, ["mini-zh"], ["mini-zh"], {})
    job = story.submit(count=3)
    until(lambda: story.job(job).state == JobState.SUCCEEDED)
    until(lambda: "mini-zh" in ready_workers(story)[0]["seconds_per_image"])
    worker.stop()
    assert ready_workers(story) == []


def test_progress_is_published_while_it_renders(
    story: Story, settings: Settings, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job: UUID = story.submit(steps=100)
    worker = make_worker(device=SLOW)
    worker.notifications.start()
    working = aside.submit(work, worker)
    step, steps = until(lambda: Broker(settings).progress([job]).get(job)) or (0, 0)
    assert 1 <= step <= steps == 100
    with transaction(story.database) as connection:
        jobs.cancel(connection, job)
    worker.heartbeat.beat()
    working.result(60)
