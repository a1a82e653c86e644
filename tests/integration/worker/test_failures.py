"""What a worker does when it hangs, dies, runs out of memory, has a wrong clock, or is stopped twice."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Row, text

from common.config import Settings
from common.db import transaction
from common.enums import ImageState, JobState, WorkerState
from common.errors import OutOfMemory, RenderFailed
from common.queue import workers
from tests.support.stories import CATALOG, Story
from tests.support.workers import (
    QUICK,
    SLOW,
    MakeWorker,
    log_of,
    nobody_let_in,
    running,
    until,
    until_ended,
    until_published,
)
from worker.pipelines.base import ImageRequest, OnStep, RenderedImage
from worker.pipelines.stub import StubPipeline
from worker.render import loop
from worker.render.heartbeat import CLOCK_TOLERANCE_S
from worker.render.worker import RenderWorker
from worker.watchdog import EXIT_CODE


def work(worker: RenderWorker) -> None:
    """Render what there is and wait until it is published."""
    worker.loop.run(30)
    until_published(worker)


def leases(story: Story) -> Sequence[Row[Any]]:
    with story.database.connect() as connection:
        return connection.execute(text("SELECT * FROM leases ORDER BY claimed_at")).all()


def row_of(story: Story, worker: RenderWorker) -> Row[Any]:
    with story.database.connect() as connection:
        return connection.execute(text("SELECT * FROM workers WHERE id = :id"), {"id": worker.id}).one()


def until_rendering(worker: RenderWorker, step: int = 2) -> None:
    until(lambda: worker.render_thread.current and worker.render_thread.current.step >= step)


# Hanging and dying


def test_a_step_that_hangs_ends_the_process_and_counts(story: Story, settings: Settings, tmp_path: Path) -> None:
    job = story.submit(prompt="圆 #hang")
    with running(tmp_path, settings, "render", STEP_LIMIT_S="1", **QUICK) as worker:
        assert worker.wait(60) == EXIT_CODE
    (line,) = [line for line in log_of(worker).splitlines() if "process_aborts" in line]
    assert "step takes longer than HUAFANG_STEP_LIMIT_S allows" in line
    assert "Traceback" not in log_of(worker)
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.RUNNING, 1)}
    with story.database.connect() as connection:
        state, reason = connection.exec_driver_sql("SELECT state, reason FROM workers").one()
    assert (state, reason) == (WorkerState.STOPPED, "step takes longer than HUAFANG_STEP_LIMIT_S allows")


def test_a_slow_render_is_no_hang(story: Story, settings: Settings, tmp_path: Path) -> None:
    """Longer than the limit as a whole, and each step well below it."""
    job = story.submit(steps=30)
    with running(tmp_path, settings, "render", DEVICE="stub:0.1", STEP_LIMIT_S="1", DECODE_LIMIT_S="1", **QUICK):
        assert until_ended(story, job) == [JobState.SUCCEEDED]


@pytest.mark.parametrize("trouble", ["#lost", "#die"])
def test_what_kills_workers_fails_at_the_third_attempt_and_fails_no_neighbour(
    story: Story, settings: Settings, tmp_path: Path, trouble: str
) -> None:
    poison, neighbour = story.submit(prompt=f"圆 {trouble}"), story.submit(count=3)
    ends = []
    with running(tmp_path, settings, "control", **QUICK):
        while not (ended := story.job(poison).finished_at):
            with running(tmp_path, settings, "render", **QUICK) as worker:  # as its supervisor does
                until(lambda: worker.poll() is not None or story.job(poison).finished_at)
                if worker.poll() is not None:
                    ends.append(worker.poll())
        with running(tmp_path, settings, "render", **QUICK):
            assert until_ended(story, neighbour) == [JobState.SUCCEEDED]
    assert ended
    assert ends == 3 * [EXIT_CODE if trouble == "#lost" else -signal.SIGKILL]
    (image,) = story.images(poison)
    assert (image.state, image.attempts, image.error_code) == (ImageState.FAILED, 3, "worker_lost")
    assert {image.attempts for image in story.images(neighbour)} == {2}  # once in its company, once alone


def test_what_is_rendered_is_stored_before_the_exit(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=8)
    with story.database.begin() as connection:  # larger than the model's limit, so that it takes its time to store them
        connection.exec_driver_sql('UPDATE jobs SET recipe = recipe || \'{"width": 1024, "height": 1024}\'')
    worker = make_worker()
    working = aside.submit(worker.loop.run, 30)
    until(lambda: worker.render_thread.current and not worker.loop._inflight)
    assert story.job(job).state == JobState.RUNNING  # its pictures are on their way to the store
    worker.release_before_exit("a drill")
    assert story.job(job).state == JobState.SUCCEEDED
    working.result(60)


def test_what_is_queued_is_released_before_the_exit(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=24, steps=20)
    worker = make_worker(device=SLOW)
    working = aside.submit(worker.loop.run, 30)
    until(lambda: len(leases(story)) == 3)
    worker.release_before_exit("a drill")
    assert [image.state for image in story.images(job)].count(ImageState.RUNNING) == 8
    assert [lease.outcome for lease in leases(story)] == ["published", None, "released"]
    worker.loop.drain()
    worker.loop.drain()
    working.result(60)


def test_a_suspect_starts_when_all_else_of_its_worker_is_published(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    suspect = story.submit()
    story.die(story.started())
    story.skip_backoff()
    story.submit(tenant="other", count=8, steps=20)
    story.submit(tenant="another", count=8, steps=30)
    with story.database.begin() as connection:  # so that it comes last
        connection.exec_driver_sql(
            "UPDATE tenants SET virtual_time = 1000 FROM jobs WHERE tenants.id = jobs.tenant_id AND jobs.id = %s",
            (suspect,),
        )
    work(make_worker(device=SLOW))
    (own,) = [lease for lease in leases(story) if lease.id == story.images(suspect)[0].lease_id]
    others = [lease for lease in leases(story) if lease.id != own.id and lease.outcome == "published"]
    assert len(others) == 2
    assert own.started_at >= max(lease.ended_at for lease in others)
    assert own.claimed_at < max(lease.ended_at for lease in others)  # it was claimed ahead


def test_nothing_is_started_while_a_suspect_renders(
    story: Story, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it kills the process, that must cost no other image an attempt."""
    for ahead in ("CLAIM_AHEAD_S", "START_AHEAD_S"):
        monkeypatch.setattr(loop, ahead, 1.0)
    story.submit(steps=50)
    story.die(story.started())
    story.skip_backoff()
    story.submit(tenant="other")
    with story.database.begin() as connection:  # so that it comes last
        connection.exec_driver_sql("UPDATE tenants SET virtual_time = 1000 WHERE name = 'other'")
    work(make_worker(device=SLOW))
    suspect, other = leases(story)[1:]  # the first lease is the one that died
    assert [len(lease.image_ids) for lease in (suspect, other)] == [1, 1]
    assert other.claimed_at < suspect.ended_at  # it was claimed ahead
    assert (other.started_at - suspect.started_at).total_seconds() > 1.49  # of 1.5 s


# Memory


class Small(StubPipeline):
    """Has room for three at once."""

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        if len(requests) > 3:
            raise OutOfMemory("Out of memory.")
        return super().generate(requests, on_step)


def test_a_microbatch_that_does_not_fit_is_halved_and_the_next_are_smaller(
    story: Story, make_worker: MakeWorker
) -> None:
    job = story.submit(count=13)
    worker = make_worker()
    worker.models._pipelines = {"mini-zh": Small(CATALOG.get("mini-zh"))}
    work(worker)
    assert story.job(job).state == JobState.SUCCEEDED
    assert {image.attempts for image in story.images(job)} == {1}
    assert [len(lease.image_ids) for lease in leases(story)] == [8, 2, 2, 1]


def test_the_batch_size_is_reduced_for_ten_minutes(
    story: Story, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.submit(count=8)
    worker = make_worker()
    worker.models._pipelines = {"mini-zh": Small(CATALOG.get("mini-zh"))}
    work(worker)
    for minutes in (9, 11):
        story.submit(count=8)
        with clock_off_by(60 * minutes, monkeypatch, "monotonic"):
            work(worker)
    assert [len(lease.image_ids) for lease in leases(story)] == [8, *[2] * 4, 8]


# Draining


def test_a_second_sigterm_releases_at_once(story: Story, settings: Settings, tmp_path: Path) -> None:
    """In the middle of a step, which nobody can stop."""
    job = story.submit(steps=1)
    with running(tmp_path, settings, "render", DEVICE="stub:300", DRAIN_S="600", **QUICK) as worker:
        until(lambda: story.job(job).state == JobState.RUNNING)

        def is_gone_when_told_again() -> bool:
            worker.terminate()
            return worker.poll() is not None

        until(is_gone_when_told_again)
        assert worker.poll() == 0
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}
    assert "Traceback" not in log_of(worker)


def test_a_paused_worker_releases_what_it_cannot_finish_in_time(
    story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor
) -> None:
    job = story.submit(count=2, steps=100)
    worker = make_worker(device=SLOW, drain_s=1)
    worker.heartbeat.beat()
    working = aside.submit(work, worker)
    until_rendering(worker)
    rendering = worker.render_thread.current
    with transaction(story.database) as connection:
        workers.drain(connection, worker.id, "a new driver")
    worker.heartbeat.beat()
    working.result(60)
    assert rendering.step < 75
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}
    with transaction(story.database) as connection:
        workers.resume(connection, worker.id)
    worker.heartbeat.beat()
    work(worker)
    assert story.job(job).state == JobState.SUCCEEDED


def test_further_heartbeats_move_no_deadline(story: Story, make_worker: MakeWorker, aside: ThreadPoolExecutor) -> None:
    """In the middle of a step that takes four seconds: at each beat the worker is asked to drain once more."""
    job = story.submit(steps=1)
    worker = make_worker(device="stub:4", drain_s=1)
    worker.heartbeat.beat()
    working = aside.submit(work, worker)
    until(lambda: story.job(job).state == JobState.RUNNING)
    with transaction(story.database) as connection:
        workers.drain(connection, worker.id, "a new driver")

    def has_left_after_another_beat() -> bool:
        worker.heartbeat.beat()
        return working.done()

    until(has_left_after_another_beat)
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}


def test_a_worker_that_drains_twice_leaves_at_the_earlier_deadline(make_worker: MakeWorker) -> None:
    """Paused by an operator, then stopped by its supervisor."""
    worker = make_worker(drain_s=100)
    worker.loop.pause(True)
    first = worker.loop._drain.deadline
    worker.loop.drain()
    assert worker.loop._drain.deadline == first < time.monotonic() + 100
    worker.loop.pause(False)
    assert first <= worker.loop._drain.deadline < time.monotonic() + 100
    worker.loop.drain()
    assert worker.loop._drain.deadline <= time.monotonic()


# The clock


@contextmanager
def clock_off_by(seconds: float, monkeypatch: pytest.MonkeyPatch, clock: str = "time") -> Iterator[None]:
    real = getattr(time, clock)
    with monkeypatch.context() as here:
        here.setattr(time, clock, lambda: real() + seconds)
        yield


@pytest.mark.parametrize("off_s", [3600, -20])
def test_a_wrong_clock_is_logged_once_each_time_and_stops_nothing(
    story: Story,
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    off_s: float,
) -> None:
    job, worker = story.submit(), make_worker()
    worker.loop.is_ready = True
    worker.heartbeat.beat()
    for times in (1, 2):
        with clock_off_by(off_s, monkeypatch):
            worker.heartbeat.beat()
            worker.heartbeat.beat()
        worker.heartbeat.beat()
        assert caplog.text.count(f"clock_skew skew_s={off_s} ") == times
    assert (row_of(story, worker).state, row_of(story, worker).reason) == (WorkerState.READY, None)
    work(worker)
    assert story.job(job).state == JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("database_time", "is_wrong"),
    [
        (1001, False),
        (1059, False),
        (1000 - CLOCK_TOLERANCE_S, False),
        (1000 - CLOCK_TOLERANCE_S - 1, True),
        (1060 + CLOCK_TOLERANCE_S, False),
        (1060 + CLOCK_TOLERANCE_S + 1, True),
    ],
)
def test_a_slow_answer_is_no_wrong_clock(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture, database_time: float, is_wrong: bool
) -> None:
    make_worker().heartbeat._compare_clocks(before=1000, database_time=database_time, after=1060)
    assert ("clock_skew" in caplog.text) == is_wrong


# The heartbeat's connection


def test_no_lease_is_lost_for_want_of_a_connection(story: Story, settings: Settings, make_worker: MakeWorker) -> None:
    """The worker's pool is in use and Postgres lets nobody in: the heartbeat has its own, and keeps it."""
    story.submit()
    worker = make_worker()
    worker.heartbeat.beat()
    with ExitStack() as hold:
        for _ in range(4):
            hold.enter_context(worker.database.connect())
        held = story.started()
        worker.held_leases.add(held)
        before = leases(story)[0].expires_at
        with nobody_let_in(settings):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(settings.database_url.get_secret_value(), connect_timeout=5).close()
            beating = threading.Thread(target=worker.heartbeat.beat)
            beating.start()
            beating.join(60)
            assert not beating.is_alive()
        assert leases(story)[0].expires_at != before
    worker.uploader.release(held, "the test is over")
