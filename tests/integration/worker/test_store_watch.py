"""A worker that cannot store while others can gives back what it holds; while nobody can, everybody keeps it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState
from common.queue import quarantines, workers
from common.queue.workers import Worker
from common.storage import TRIAL
from tests.faults.proxy import Network
from tests.support.stories import Story
from tests.support.workers import (
    MakeWorker,
    bucket_of,
    holds_leases_for,
    log_of,
    ready_workers,
    running,
    until,
    until_ended,
    until_published,
)
from worker.quarantine import sentence
from worker.render.worker import RenderWorker

LIMIT_S = 2.0  # stands for the minute


@pytest.fixture
def network(settings: Settings) -> Iterator[Network]:
    """A way to the image store that can be closed for one worker."""
    assert settings.s3_endpoint_url
    made = Network({"s3": int(settings.s3_endpoint_url.rpartition(":")[2])})
    made.start()
    yield made
    made.heal()


def by(network: Network) -> str:
    return f"http://127.0.0.1:{network['s3'].port}"


def report(
    story: Story, name: str, *, cannot_store_s: float | None = None, models: tuple[str, ...] = ("zh-v0",)
) -> Worker:
    """A worker says how it fares."""
    worker = Worker(new_id(), name, {"device": "stub"}, models, cannot_store_s=cannot_store_s)
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    return worker


def others(story: Story, worker: Worker, models: tuple[str, ...] = ("zh-v0",)) -> tuple[bool, bool]:
    with transaction(story.database) as connection:
        found = workers.storing(connection, worker.id, models, 15)
    return found.others_can, found.others_cannot


# Who can store


def test_each_heartbeat_says_since_when_a_worker_cannot_store(story: Story) -> None:
    worker = report(story, "a", cannot_store_s=30)
    statement = "SELECT extract(epoch FROM now() - cannot_store_since)::float AS s FROM workers"
    (row,) = story.rows(statement)
    assert row.s == pytest.approx(30, abs=20)
    since = story.rows("SELECT cannot_store_since FROM workers")
    for seconds, expected in ((40.0, since), (None, [(None,)])):
        with transaction(story.database) as connection:
            workers.heartbeat(connection, Worker(worker.id, "a", {}, [], cannot_store_s=seconds), ready=True)
        assert story.rows("SELECT cannot_store_since FROM workers") == expected


def test_others_that_can_store_are_alive_serve_the_models_and_are_not_quarantined(story: Story) -> None:
    me = report(story, "me", cannot_store_s=70)
    assert others(story, me) == (False, False)
    away = report(story, "away", cannot_store_s=70)
    assert others(story, me) == (False, True)
    other = report(story, "other", models=("zh-v0", "mini-zh"))
    assert others(story, me) == (True, True)
    assert others(story, me, ("zh-v0", "sdxl")) == (False, True)
    assert others(story, away) == (True, True)
    with transaction(story.database) as connection:
        quarantines.quarantine(connection, "away", sentence("cannot_store", seconds=60, reason="a drill"))
    assert others(story, me) == (True, False)
    with transaction(story.database) as connection:
        connection.execute(
            text("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE id = :id"), {"id": other.id}
        )
    assert others(story, me) == (False, False)


# A worker that cannot store


@pytest.fixture
def make_two(make_worker: MakeWorker, network: Network) -> Callable[..., list[RenderWorker]]:
    """Two workers that are ready. Those named reach the image store through the network."""

    def make(*through: str, **changes: Any) -> list[RenderWorker]:
        made = []
        for name in ("first", "second"):
            way = {"s3_endpoint_url": by(network)} if name in through else {}
            worker = make_worker(worker_name=name, cannot_store_s=LIMIT_S, trial_s=3600, **way, **changes)
            worker.farm.compare()
            worker.render_thread.load("mini-zh").result()
            worker.loop.is_ready = True
            worker.heartbeat.beat()
            made.append(worker)
        return made

    return make


def close(network: Network) -> None:
    network["s3"].become(refuse=True)
    network["s3"].reset_all()


def beat(*all_workers: RenderWorker) -> None:
    """What the threads of a worker do every few seconds."""
    for worker in all_workers:
        worker.heartbeat.beat()
        worker.store_watch.look()
        worker.heartbeat.beat()


def set_aside(story: Story, network: Network, first: RenderWorker, second: RenderWorker) -> None:
    """The first one holds an image that it cannot store, and the second one can."""
    close(network)
    story.submit()
    first.loop.run(30)
    until_it_cannot_store(first)
    beat(second, first)


def until_it_cannot_store(worker: RenderWorker) -> None:
    until(lambda: (worker.store_watch.cannot_store_s or 0) > LIMIT_S)


def make_trial_due(story: Story) -> None:
    with story.database.begin() as connection:
        connection.exec_driver_sql("UPDATE quarantines SET retry_at = now()")


def test_a_worker_that_alone_cannot_store_gives_back_what_it_holds(
    story: Story, settings: Settings, network: Network, make_two: Callable[..., list[RenderWorker]]
) -> None:
    first, second = make_two("first")
    close(network)
    job = story.submit(count=3)
    first.loop.run(30)
    until_it_cannot_store(first)
    beat(second, first)
    assert [(image.state, image.attempts) for image in story.images(job)] == 3 * [(ImageState.QUEUED, 0)]
    assert first.held_leases.ids() == []
    (row,) = story.rows("SELECT name, code, reason FROM quarantines")
    assert (row.name, row.code) == ("first", "cannot_store")
    assert "store is down" in row.reason

    first.loop.run(1)
    assert first.held_leases.ids() == []
    second.loop.run(30)
    until_published(second)
    assert [(image.state, image.attempts) for image in story.images(job)] == 3 * [(ImageState.STORED, 1)]
    assert bucket_of(settings).keys() == {image.key for image in story.images(job)}


def test_what_it_still_renders_then_is_given_back_too(
    story: Story, network: Network, make_two: Callable[..., list[RenderWorker]], aside: ThreadPoolExecutor
) -> None:
    first, second = make_two("first", device="stub:0.05")
    close(network)
    _, job = story.submit(steps=1), story.submit(steps=150)
    rendering = aside.submit(first.loop.run, 30)
    until(lambda: story.images(job)[0].state == ImageState.RUNNING)
    until_it_cannot_store(first)
    beat(second, first)
    rendering.result(60)
    until(lambda: not first.held_leases.ids())
    assert [(image.state, image.attempts) for image in story.images(job)] == [(ImageState.QUEUED, 0)]


def test_it_comes_back_when_it_can_store_again(
    story: Story, settings: Settings, network: Network, make_two: Callable[..., list[RenderWorker]]
) -> None:
    first, second = make_two("first")
    set_aside(story, network, first, second)
    second.loop.run(30)
    until_published(second)

    make_trial_due(story)
    first.loop.run(1)
    (row,) = story.rows("SELECT trials FROM quarantines")
    assert row.trials == 1, "a trial that cannot store ends nothing"
    network.heal()
    make_trial_due(story)
    job = story.submit()
    first.loop.run(30)
    until_published(first)
    assert story.job(job).state == "succeeded"
    assert story.rows("SELECT FROM quarantines") == []
    beat(first)
    assert story.rows("SELECT FROM workers WHERE cannot_store_since IS NOT NULL") == []
    assert TRIAL not in bucket_of(settings)


def test_while_nobody_can_store_everybody_keeps_what_it_holds(
    story: Story, network: Network, make_two: Callable[..., list[RenderWorker]]
) -> None:
    """The second one is idle: it tries because the first one says that it cannot."""
    first, second = make_two("first", "second")
    close(network)
    job = story.submit(count=3)
    first.loop.run(30)
    until_it_cannot_store(first)
    first.heartbeat.beat()
    beat(second)
    assert second.store_watch.cannot_store_s
    beat(second, first)
    assert story.rows("SELECT FROM quarantines") == []
    assert [(image.state, image.attempts) for image in story.images(job)] == 3 * [(ImageState.RUNNING, 1)]
    network.heal()
    until_published(first)
    assert [(image.state, image.attempts) for image in story.images(job)] == 3 * [(ImageState.STORED, 1)]


def test_an_operator_may_say_that_it_can_store(
    story: Story, network: Network, make_two: Callable[..., list[RenderWorker]]
) -> None:
    """Then it holds what it renders again, for as long as before."""
    first, second = make_two("first")
    set_aside(story, network, first, second)
    with transaction(story.database) as connection:
        quarantines.resume(connection, "first")
    beat(first)
    first.loop.run(30)
    assert holds_leases_for(first, LIMIT_S / 4)
    until_it_cannot_store(first)
    beat(second, first)
    assert first.held_leases.ids() == []


def test_a_try_that_hangs_delays_nobody(
    story: Story, network: Network, make_two: Callable[..., list[RenderWorker]]
) -> None:
    """A store that accepts and never answers: what is held is given back before the try has ended."""
    first, second = make_two("first")
    close(network)
    job = story.submit()
    first.loop.run(30)
    until(lambda: first.store_watch.cannot_store_s)
    network["s3"].become(black_hole=True)
    until_it_cannot_store(first)
    beat(second, first)
    second.loop.run(30)
    until_published(second)
    assert [(image.state, image.attempts) for image in story.images(job)] == [(ImageState.STORED, 1)]
    network.heal()


def test_what_a_store_does_not_take_ends_no_image(
    story: Story, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever nobody foresees while bytes are sent."""
    worker, job = make_worker(), story.submit(count=2)
    worker.farm.compare()

    def fail(**_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as here:
        here.setattr(worker.uploader._storage._client, "put_object", fail)
        worker.loop.run(30)
        until(lambda: "store_failed" in caplog.text)
        assert holds_leases_for(worker, 0.5)
    until_published(worker)
    assert [(image.state, image.attempts) for image in story.images(job)] == 2 * [(ImageState.STORED, 1)]
    assert caplog.text.count("store_failed") == 1


@pytest.mark.long
@pytest.mark.parametrize("weather", ["refuse", "black_hole", "errors"])
def test_within_90_seconds_others_store_what_one_worker_cannot(
    story: Story, settings: Settings, network: Network, tmp_path: Path, weather: str
) -> None:
    """With the minute that it is in earnest."""
    with (
        running(tmp_path, settings, "control"),
        running(tmp_path, settings, "render", "--name", "first", S3_ENDPOINT_URL=by(network)) as first,
    ):
        until(lambda: ready_workers(story))
        job = story.submit(steps=100, count=8)
        until(lambda: story.rows("SELECT FROM leases WHERE started_at IS NOT NULL"))
        network["s3"].become(**{weather: True})
        if weather == "refuse":
            network["s3"].reset_all()
        began = time.monotonic()
        with running(tmp_path, settings, "render", "--name", "second"):
            assert until_ended(story, job, seconds=300) == ["succeeded"]
        seconds = time.monotonic() - began
        assert seconds < 90, f"{seconds:.0f} s"
        assert "worker_quarantined" in log_of(first)
        assert {image.attempts for image in story.images(job)} == {1}
