"""Workers as processes: whatever is lost on the way, every job is rendered."""

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from common.broker import Broker
from common.config import Settings
from common.db import connect, migrate
from common.enums import JobState, Tier
from common.storage import Storage, sha256
from embedded.servers import Servers, create_bucket
from tests.support.serving import readiness, serving
from tests.support.stories import Story
from tests.support.workers import QUICK, log_of, ready_workers, running, until, until_ended
from worker.render.worker import MAX_LEASES

NEVER = {"LEASE_S": "600", "BEAT_S": "600"}  # so that no idle try can stand in for a message


def submit(story: Story, settings: Settings, count: int, **fields: int) -> list[UUID]:
    """Jobs of one image each, each announced as the API does it."""
    messages, jobs = Broker(settings), []
    for number in range(count):
        jobs.append(story.submit(tenant=f"tenant {number % 3}", **fields))
        messages.wake_soon("mini-zh", jobs[-1], Tier.STANDARD)
    return jobs


def images_by_worker(story: Story) -> Counter[UUID]:
    statement = text("""
        SELECT worker_id, count(*) FROM images JOIN leases ON leases.id = images.lease_id
        WHERE state = 'stored' GROUP BY worker_id
    """)
    with story.database.connect() as connection:
        return Counter({row.worker_id: row.count for row in connection.execute(statement)})


def test_two_workers_share_the_work(story: Story, settings: Settings, tmp_path: Path) -> None:
    with (
        running(tmp_path, settings, "render", DEVICE="stub:0.02", **QUICK),
        running(tmp_path, settings, "render", DEVICE="stub:0.02", **QUICK),
    ):
        until(lambda: len(ready_workers(story)) == 2)
        jobs = submit(story, settings, 80, steps=10)
        assert set(until_ended(story, *jobs)) == {JobState.SUCCEEDED}
    shares = images_by_worker(story)
    assert sum(shares.values()) == 80
    assert len(shares) == 2
    assert min(shares.values()) >= 20


def test_messages_alone_get_everything_rendered(story: Story, settings: Settings, tmp_path: Path) -> None:
    """No sweep and no idle try: Redis is healthy, and that is enough."""
    with running(tmp_path, settings, "render", **NEVER) as worker:
        until(lambda: " ready." in log_of(worker))  # Celery's
        jobs = submit(story, settings, 100)
        assert set(until_ended(story, *jobs)) == {JobState.SUCCEEDED}


def test_the_sweep_gets_everything_rendered_whose_messages_were_lost(
    story: Story, settings: Settings, tmp_path: Path
) -> None:
    with running(tmp_path, settings, "render", **NEVER) as worker:
        until(lambda: " ready." in log_of(worker))
        assert until_ended(story, *submit(story, settings, 1)) == [JobState.SUCCEEDED]  # it is idle from here on
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
            client.flushdb()
        jobs = [story.submit(tenant=f"tenant {number % 3}") for number in range(100)]
        with running(tmp_path, settings, "control", **{**NEVER, "SWEEP_S": "0.3"}) as control:
            assert set(until_ended(story, *jobs)) == {JobState.SUCCEEDED}
            until(lambda: "models_woken" in log_of(control))


def test_an_idle_worker_finds_work_by_itself_when_nothing_wakes_it(
    story: Story, settings: Settings, tmp_path: Path
) -> None:
    deaf = {"REDIS_URL": "redis://127.0.0.1:1/0"}  # nobody listens there
    with running(tmp_path, settings, "render", **QUICK, **deaf) as worker:
        until(lambda: ready_workers(story))
        jobs = [story.submit() for _ in range(10)]
        assert set(until_ended(story, *jobs)) == {JobState.SUCCEEDED}
        worker.terminate()
        assert worker.wait(60) == 0
    assert "Traceback" not in log_of(worker)


# With servers that can be stopped


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp("servers")) as servers:
        migrate(servers.instance.database_url(servers.instance.host))
        create_bucket(servers.instance, "huafang")
        yield servers


@pytest.fixture
def own(own_servers: Servers, tmp_path: Path) -> Settings:
    site = own_servers.instance
    return Settings(
        home=tmp_path,
        database_url=site.database_url(site.host),
        redis_url=f"redis://:{site.secrets['valkey']}@{site.host}:{site.ports['valkey']}/0",
        s3_endpoint_url=f"http://{site.host}:{site.ports['s3']}",
        s3_access_key="farm:s3",
        s3_secret_key=site.secrets["s3"],
        device="stub:0.02",
    )


@pytest.fixture
def own_story(own: Settings) -> Iterator[Story]:
    database = connect(own)
    yield Story(database)
    database.dispose()


def logged(process: subprocess.Popen[bytes], event: str) -> bool:
    return event in log_of(process)


def open_leases(story: Story) -> int:
    with story.database.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM leases WHERE ended_at IS NULL")).scalar_one())


def attempts(story: Story, jobs: list[UUID]) -> set[int]:
    return {image.attempts for job in jobs for image in story.images(job)}


def test_images_wait_in_memory_while_the_store_is_away(
    own_story: Story, own: Settings, own_servers: Servers, tmp_path: Path
) -> None:
    """With short leases: they are kept for as long as it takes, and no more is claimed than has room."""
    with (
        running(tmp_path, own, "control", **QUICK),
        running(tmp_path, own, "render", DEVICE="stub", **QUICK) as worker,
    ):
        until(lambda: ready_workers(own_story))
        own_servers.stop("s3")
        jobs = [own_story.submit(count=40) for _ in range(3)]
        until(lambda: open_leases(own_story) == MAX_LEASES)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 2 * float(QUICK["LEASE_S"]))
        assert open_leases(own_story) == MAX_LEASES
        own_servers.start("s3")
        assert set(until_ended(own_story, *jobs)) == {JobState.SUCCEEDED}
        until(lambda: "storage_back" in log_of(worker))
    assert attempts(own_story, jobs) == {1}
    assert log_of(worker).count("storage_away") == 1
    assert "Traceback" not in log_of(worker)


def test_every_job_succeeds_though_each_service_goes_away_in_turn(
    own_story: Story, own: Settings, own_servers: Servers, tmp_path: Path
) -> None:
    jobs = [own_story.submit(tenant=f"tenant {number % 3}", steps=25) for number in range(100)]
    with (
        running(tmp_path, own, "control", **QUICK) as control,
        running(tmp_path, own, "render", **QUICK) as worker,
    ):
        until(lambda: images_by_worker(own_story))
        for service, event in (("s3", "storage_away"), ("postgres", "database_away"), ("valkey", "")):
            own_servers.stop(service)
            until(partial(logged, worker, event))
            own_servers.start(service)
        assert set(until_ended(own_story, *jobs)) == {JobState.SUCCEEDED}
        storage = Storage(own)
        for image in (image for job in jobs for image in own_story.images(job)):
            assert sha256(storage.get(image.key)) == image.sha256
        worker.terminate()
        control.terminate()
        assert (worker.wait(60), control.wait(60)) == (0, 0)
    for process in (worker, control):
        assert "Traceback" not in log_of(process)
    assert log_of(worker).count("database_away") <= 2


def test_a_redis_that_may_evict_messages_is_refused(own: Settings, tmp_path: Path) -> None:
    with redis.Redis.from_url(own.redis_url.get_secret_value()) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with running(tmp_path, own, "render") as worker:
                assert worker.wait(60) == 1
            assert log_of(worker).splitlines()[-1].startswith("Redis' maxmemory-policy is allkeys-lru")
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_an_api_whose_redis_begins_to_evict_messages_says_so(own: Settings, own_story: Story) -> None:
    with (
        serving(own, own_story.database) as api,
        api.client() as client,
        redis.Redis.from_url(own.redis_url.get_secret_value()) as server,
    ):
        assert client.get("/readyz").json()["status"] == "ready"
        server.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert readiness(client, 200, "allkeys-lru").json()["status"] == "degraded"
        finally:
            server.config_set("maxmemory-policy", "noeviction")
