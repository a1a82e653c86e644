"""What a worker does while the image store or Postgres is away: it waits, releases late, and loses nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from common.config import Settings
from common.enums import ImageState, JobState
from common.errors import Unavailable
from common.storage import MARK, Storage
from tests.support.stories import Story
from tests.support.workers import MakeWorker, bucket_of, holds_leases_for, nobody_let_in, until, until_published
from worker.render.worker import RenderWorker

# The image store


@contextmanager
def bucket_away(settings: Settings, worker: RenderWorker, s3: Any) -> Iterator[None]:
    """The bucket is missing while the block lasts, and has what it had afterwards. The worker has seen it before."""
    worker.farm.compare()
    kept = Storage(settings).read_mark()
    assert kept
    Storage(settings).delete([MARK])
    s3.delete_bucket(Bucket=settings.s3_bucket)
    yield
    s3.create_bucket(Bucket=settings.s3_bucket)
    Storage(settings).write_mark(kept, replace=True)


def test_images_wait_while_the_bucket_is_missing(
    story: Story,
    settings: Settings,
    make_worker: MakeWorker,
    s3_of_run: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    worker, job = make_worker(), story.submit(count=3)
    with bucket_away(settings, worker, s3_of_run):
        worker.loop.run(30)
        until(lambda: "storage_away" in caplog.text or not worker.held_leases.ids())
        assert holds_leases_for(worker, 1)
        assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.RUNNING, 1)}
    until_published(worker)
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.STORED, 1)}
    assert bucket_of(settings).keys() == {image.key for image in story.images(job)}
    assert caplog.text.count("storage_away") == caplog.text.count("storage_back") == 1


def test_a_second_drain_releases_the_images_that_wait(
    story: Story, settings: Settings, make_worker: MakeWorker, aside: ThreadPoolExecutor, s3_of_run: Any
) -> None:
    worker, job = make_worker(drain_s=60), story.submit()
    with bucket_away(settings, worker, s3_of_run):
        worker.loop.run(30)
        worker.loop.drain()
        closing = aside.submit(worker.uploader.close, 60)
        assert holds_leases_for(worker, 2)
        worker.loop.drain()
        closing.result(60)
        assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}


# Postgres


def test_a_deferred_release_is_done_when_postgres_answers(
    story: Story, settings: Settings, make_worker: MakeWorker
) -> None:
    job, worker = story.submit(count=2), make_worker()
    held = story.started()
    worker.held_leases.add(held)
    with nobody_let_in(settings):
        worker.uploader.release(held, "a drill")
        assert worker.held_leases.ids() == []
        with pytest.raises(Unavailable):
            worker.heartbeat.beat()
    assert {image.lease_id for image in story.images(job)} == {held.lease_id}
    worker.heartbeat.beat()
    assert {(image.state, image.attempts, image.lease_id) for image in story.images(job)} == {
        (ImageState.QUEUED, 0, None)
    }
    assert worker.held_leases.deferred_releases() == []


def test_a_deferred_release_that_fails_delays_neither_the_others_nor_the_heartbeat(
    story: Story, settings: Settings, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """For a reason that nobody foresees. Its lease expires."""
    story.submit(count=2)
    worker, poisoned, other = make_worker(), story.started(capacity=1), story.started(capacity=1)
    with nobody_let_in(settings):
        for held in (poisoned, other):
            worker.held_leases.add(held)
            worker.uploader.release(held, "a drill")
    with story.database.begin() as connection:
        check = f"id <> '{poisoned.images[0].id}' OR lease_id IS NOT NULL"
        connection.exec_driver_sql(f"ALTER TABLE images ADD CONSTRAINT unforeseen CHECK ({check})")
    worker.heartbeat.beat()
    assert len(story.rows("SELECT FROM workers")) == 1
    assert worker.held_leases.deferred_releases() == []
    assert f"heartbeat_failed lease={poisoned.lease_id}" in caplog.text
    assert [row.id for row in story.rows("SELECT id FROM leases WHERE ended_at IS NULL")] == [poisoned.lease_id]


def test_a_claim_whose_answer_was_lost_is_released(
    story: Story, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres has committed it, and the worker does not know it."""
    job, worker = story.submit(), make_worker()
    worker.farm.compare()
    worker.quarantine.sync(worker.database)
    dialect = worker.database.dialect
    commit = dialect.do_commit

    def commit_and_lose_the_answer(connection: Any) -> None:
        commit(connection)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as here:
        here.setattr(dialect, "do_commit", commit_and_lose_the_answer)
        worker.loop.run(1)
    (image,) = story.images(job)
    assert image.lease_id is not None
    worker.heartbeat.beat()
    worker.loop.run(30)
    until_published(worker)
    assert story.job(job).state == JobState.SUCCEEDED
