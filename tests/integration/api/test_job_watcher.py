"""`Prefer: wait`: requests that wait for a job to end, many at once, with Redis and without."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis
from sqlalchemy import Engine

from api.live.event_stream import RETRY, follow
from api.live.job_events import read_event_id
from api.live.job_watcher import WAKE_AT_ONCE, JobWatcher, Subscription, WatchedJob
from api.queries.jobs import JobVersion, find_changed
from api.schemas import Job
from common.accounts import keys, tenants
from common.broker import Broker
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, Scope
from tests.support.serving import PROMPT, Api, serving
from tests.support.stories import Story

NO_REDIS = "redis://127.0.0.1:1/0"


def end_all(story: Story, messages: Broker | None) -> int:
    """Render whatever waits, as a worker does; how many jobs that ended."""
    ended = 0
    while microbatch := story.claim(capacity=64):
        story.start(microbatch)
        jobs = story.publish(microbatch).ended_jobs
        ended += len(jobs)
        if messages:
            messages.announce_changed(jobs)
    return ended


@pytest.mark.parametrize("redis", ["up", "away"])
def test_a_waiting_request_is_answered_when_the_job_ends(settings: Settings, database: Engine, redis: str) -> None:
    story = Story(database)
    if redis == "away":
        settings = settings.model_copy(update={"redis_url": type(settings.redis_url)(NO_REDIS)})
    with serving(settings, database) as api, api.client() as client:
        worker = threading.Thread(target=wait_and_end, args=(story, None if redis == "away" else Broker(settings)))
        worker.start()
        answer = client.post("/v1/jobs", json=PROMPT, headers={"Prefer": "wait=30"})
        worker.join()
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
        assert answer.headers["Preference-Applied"] == "wait=30"
        assert answer.json()["images"][0]["url"]


def wait_and_end(story: Story, messages: Broker | None) -> None:
    stop = threading.Event()
    while not end_all(story, messages):
        stop.wait(0.02)


def test_a_job_that_takes_longer_is_answered_as_it_is(api: Api, client: httpx.Client, story: Story) -> None:
    answer = client.post("/v1/jobs", json=PROMPT, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["state"]) == (201, "queued")
    assert answer.headers["Location"].endswith(answer.json()["id"])


def test_a_repeated_submission_waits_too(api: Api, client: httpx.Client, story: Story) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post("/v1/jobs", json=PROMPT, headers=headers)
    end_all(story, None)
    again = client.post("/v1/jobs", json=PROMPT, headers=headers | {"Prefer": "wait=60"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.headers["Idempotency-Replayed"] == "true"


def test_two_hundred_waiting_requests_hold_neither_threads_nor_connections(
    api: Api, story: Story, settings: Settings
) -> None:
    state = api.app.state.shared
    with api.client() as client:
        key = client.headers["Authorization"]

    async def tell() -> tuple[list[httpx.Response], list[int], int]:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": key, "Prefer": "wait=60"}
        options: dict[str, Any] = {"base_url": api.url, "limits": limits, "timeout": 60, "trust_env": False}
        async with httpx.AsyncClient(headers=headers, **options) as client:
            posts = [asyncio.create_task(client.post("/v1/jobs", json=PROMPT)) for _ in range(200)]
            while state.job_watcher.subscriber_count < 200:
                assert not any(post.done() for post in posts)
                await asyncio.sleep(0.02)
            in_use = state.engine.pool.checkedout()
            # They answer while everybody waits, though there are far fewer threads than waiters.
            paths = ["/healthz", "/readyz", "/v1/jobs?limit=1"] * 20
            others = [(await client.get(path, timeout=60)).status_code for path in paths]
            await asyncio.to_thread(end_all, story, Broker(settings))
            return await asyncio.gather(*posts), others, in_use

    answers, others, in_use = asyncio.run(tell())
    assert set(others) == {200}
    assert in_use <= 1  # the poll
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["state"] for answer in answers} == {"succeeded"}
    assert state.job_watcher.subscriber_count == 0


def test_one_poll_serves_all_waiting_requests(story: Story) -> None:
    asked: list[set[Any]] = []
    jobs = [story.submit() for _ in range(50)]
    wait_and_end(story, None)

    def look(known: Mapping[UUID, JobVersion | None]) -> dict[UUID, tuple[JobVersion, Job] | None]:
        asked.append(set(known))
        with transaction(story.database) as connection:
            return find_changed(connection, known)

    async def all_wait() -> list[Job | None]:
        watcher = JobWatcher(NO_REDIS, look)
        waiting = [asyncio.create_task(watcher.wait(job, 60)) for job in jobs]
        await asyncio.sleep(0)
        watcher.open()
        found = await asyncio.gather(*waiting)
        await watcher.close()
        return found

    assert [job.state if job else None for job in asyncio.run(all_wait())] == ["succeeded"] * 50
    assert asked == [set(jobs)]


def test_a_thousand_are_woken_a_few_at_a_time() -> None:
    """Whoever asks for something else meanwhile comes in between."""

    async def wake_all() -> list[int]:
        watched = WatchedJob()
        watched.subscriptions = {Subscription(watched) for _ in range(1000)}
        waiting = [asyncio.create_task(subscription.wait(60)) for subscription in watched.subscriptions]
        await asyncio.sleep(0)
        watched.notify()
        awake = [0]
        while awake[-1] < 1000:
            await asyncio.sleep(0)
            awake.append(sum(task.done() for task in waiting))
        assert all(task.result() for task in waiting)
        return awake

    awake = asyncio.run(asyncio.wait_for(wake_all(), 60))
    assert max(after - before for before, after in pairwise(awake)) <= WAKE_AT_ONCE


def test_only_rows_that_changed_are_read(story: Story) -> None:
    job, other = story.submit(count=2), story.submit()

    def changed(known: Mapping[UUID, JobVersion | None]) -> dict[UUID, JobVersion]:
        with transaction(story.database) as connection:
            return {job_id: change[0] for job_id, change in find_changed(connection, known).items() if change}

    known = changed({job: None, other: None})
    assert changed(known) == {}
    microbatch = story.started(capacity=1)
    running = changed(known)
    assert running == {job: ("running", 2)}
    story.publish(microbatch)
    assert changed(known | running) == {job: ("running", 1)}


def test_the_subscription_comes_back_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is cut; the news after that is heard all the same."""
    monkeypatch.setattr("api.live.job_watcher.POLL_S", 1000)
    messages, job = Broker(settings), new_id()
    redis = Redis.from_url(settings.redis_url.get_secret_value())
    asked = 0

    def look(known: Mapping[UUID, JobVersion | None]) -> dict[UUID, tuple[JobVersion, Job]]:
        nonlocal asked
        asked += 1
        return {}

    async def story() -> None:
        watcher = JobWatcher(settings.redis_url.get_secret_value(), look)
        watcher.open()
        with watcher.watch(job):
            for _ in range(2):
                before = asked
                while asked < before + 2:  # the first look is for who has just come
                    await asyncio.to_thread(messages.announce_changed, [job])
                    await asyncio.sleep(0.05)
                for client in redis.client_list(_type="pubsub"):
                    if client["db"] == str(redis.get_connection_kwargs()["db"]):  # the rest are other tests'
                        redis.client_kill_filter(_id=client["id"])
        await watcher.close()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_closed_watcher_lets_nothing_wait() -> None:
    async def come_late() -> tuple[Job | None, bool, list[bytes]]:
        watcher = JobWatcher(NO_REDIS, lambda known: {})
        watcher.open()
        await watcher.close()
        waited = await watcher.wait(new_id(), 1000)
        with watcher.watch(new_id()) as subscription:
            closed = subscription.closed
        told = [event async for event in follow(watcher, new_id(), read_event_id(None), "http://127.0.0.1")]
        assert watcher.subscriber_count == 0
        return waited, closed, told

    assert asyncio.run(asyncio.wait_for(come_late(), 60)) == (None, True, [RETRY])


def test_a_server_that_stops_ends_waiting_requests(farm_env: dict[str, str], settings: Settings, story: Story) -> None:
    with transaction(story.database) as connection:
        tenant = tenants.ensure_tenant(connection, "somebody")
        pepper = settings.key_pepper.get_secret_value()
        key = keys.create_key(connection, tenant, "k", [Scope.ADMIN], pepper)
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "--port", "0"], env=farm_env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        port = next(line.split("port=")[1].split()[0] for line in process.stderr if "api_started" in line)
        answers: list[httpx.Response] = []

        def wait() -> None:
            headers = {"Authorization": f"Bearer {key.secret}", "Prefer": "wait=60"}
            url = f"http://127.0.0.1:{port}/v1/jobs"
            answers.append(httpx.post(url, json=PROMPT, headers=headers, timeout=60, trust_env=False))

        waiter = threading.Thread(target=wait)
        waiter.start()
        next(line for line in process.stderr if "job_submitted" in line)
        process.terminate()
        waiter.join(60)
        assert [answer.status_code for answer in answers] == [201]
        assert process.wait(60) in (0, -15)
    finally:
        process.kill()
        process.wait(60)
    assert story.images(answers[0].json()["id"])[0].state == ImageState.QUEUED
