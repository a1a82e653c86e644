"""`GET /v1/jobs/{id}/events`: what those are told who follow a job, and what it costs when they do not listen."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis
from sqlalchemy import Engine

from common.broker import PROGRESS_CHANNEL, Broker
from common.config import Settings
from common.db import new_id
from common.enums import ImageState, Scope
from tests.support.serving import Api, serving
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until

NO_REDIS = "redis://127.0.0.1:1/0"


@dataclass
class Event:
    name: str
    data: Any
    id: str | None


class Follower:
    """Reads the stream of a job, an event at a time."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif "event" in fields:
                yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
                fields = {}

    def until(self, name: str) -> Event:
        return next(event for event in self if event.name == name)

    def next(self) -> Event:
        return next(iter(self))


@contextmanager
def following(client: httpx.Client, job: UUID, last: str | None = None) -> Iterator[Follower]:
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        yield Follower(answer)


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def watchers(api: Api) -> int:
    waiting: int = api.app.state.shared.job_watcher.subscriber_count
    return waiting


def test_a_late_reader_is_sent_everything_at_once(client: httpx.Client, story: Story) -> None:
    job = story.submit(count=2)
    story.publish(story.started())
    with following(client, job) as follower:
        events = list(follower)
    assert names(events) == ["state", "image", "image", "end"]
    shown = client.get(f"/v1/jobs/{job}").json()
    assert events[0].data == {"state": "succeeded"}
    assert [event.data for event in events[1:3]] == shown["images"]
    assert shown["images"][0]["url"].startswith(str(client.base_url))
    assert events[3].data == shown


def test_a_reader_is_sent_each_change(client: httpx.Client, story: Story, settings: Settings) -> None:
    job, messages = story.submit(count=2), Broker(settings)
    with following(client, job) as follower:
        seen = [follower.next()]
        first = story.started(capacity=1)
        messages.announce_changed([job])
        seen.append(follower.next())
        messages.report_progress([job], 1, 2)
        seen.append(follower.next())
        story.publish(first)
        messages.announce_changed([job])
        seen.append(follower.next())
        story.publish(story.started())
        messages.announce_changed([job])
        seen += list(follower)
    assert names(seen) == ["state", "state", "progress", "image", "state", "image", "end"]
    assert [event.data["state"] for event in seen if event.name == "state"] == ["queued", "running", "succeeded"]
    assert seen[2].data == {"step": 1, "steps": 2}
    assert [event.data["index"] for event in seen if event.name == "image"] == [0, 1]
    assert [event.id for event in seen] == [
        "queued.0",
        "running.0",
        None,
        "running.1",
        "succeeded.1",
        "succeeded.3",
        "end",
    ]


def test_a_reader_that_reconnects_is_sent_the_rest(client: httpx.Client, story: Story) -> None:
    job = story.submit(count=3)
    story.publish(story.started(capacity=1))
    with following(client, job) as follower:
        last = follower.until("image").id
    story.publish(story.started(capacity=1))
    with following(client, job, last) as follower:
        image = follower.next()
    assert (image.name, image.data["index"]) == ("image", 1)
    story.publish(story.started())
    with following(client, job, image.id) as follower:
        rest = list(follower)
    assert names(rest) == ["state", "image", "end"]
    assert rest[1].data["index"] == 2
    with following(client, job, rest[1].id) as follower:
        assert names(list(follower)) == ["end"]
    assert client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "end"}).status_code == 204


@pytest.mark.parametrize("last", ["7", "running.x", "running.-1", "end", "running." + "f" * 300])
def test_an_unknown_event_id_starts_from_the_beginning(client: httpx.Client, story: Story, last: str) -> None:
    job = story.submit()
    with following(client, job, last) as follower:
        assert follower.next().data == {"state": "queued"}


def test_flagged_and_failed_images_are_sent_and_cancelled_ones_are_not(client: httpx.Client, story: Story) -> None:
    job = story.submit(count=4)
    story.publish(story.started(capacity=1))
    story.publish(story.started(capacity=1), ImageState.FLAGGED)
    story.publish(story.started(capacity=1), ImageState.FAILED, error_code="nan_image", error_message="It is NaN.")
    story.cancel(job)
    with following(client, job) as follower:
        events = list(follower)
    assert [event.data["state"] for event in events[1:-1]] == ["stored", "flagged", "failed"]
    assert [image["state"] for image in events[-1].data["images"]] == ["stored", "flagged", "failed", "cancelled"]
    assert events[-1].data["state"] == "cancelled"


def test_another_tenant_finds_nothing(api: Api, story: Story) -> None:
    job = story.submit(tenant="somebody")
    with api.client("somebody else") as other, api.client(scopes=[Scope.JOBS_WRITE]) as writer:
        assert other.get(f"/v1/jobs/{job}/events").status_code == 404
        assert other.get(f"/v1/jobs/{new_id()}/events").json()["code"] == "not_found"
        assert writer.get(f"/v1/jobs/{job}/events").status_code == 403
    assert api.stranger().get(f"/v1/jobs/{job}/events").status_code == 401
    assert watchers(api) == 0


def test_without_redis_everything_but_progress_is_sent(story: Story, settings: Settings, database: Engine) -> None:
    away = settings.model_copy(update={"redis_url": type(settings.redis_url)(NO_REDIS)})
    job = story.submit()
    with serving(away, database) as api, api.client() as client, following(client, job) as follower:
        assert follower.next().data == {"state": "queued"}
        microbatch = story.started()
        assert follower.next().data == {"state": "running"}
        story.publish(microbatch)
        assert names(list(follower)) == ["state", "image", "end"]


def test_progress_comes_at_most_ten_times_a_second_and_the_latest_last(
    client: httpx.Client, story: Story, settings: Settings
) -> None:
    job, messages = story.submit(), Broker(settings)
    story.started()
    with following(client, job) as follower:
        follower.next()
        for step in range(1, 401):
            messages.report_progress([job], step, 400)
        told: list[int] = []
        while not told or told[-1] < 400:
            told.append(follower.until("progress").data["step"])
    assert told == sorted(told)
    assert len(told) < 100


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be asked for before `api` and `client`."""
    monkeypatch.setattr("api.live.job_watcher.POLL_S", 1000)


def test_a_worker_announces_its_start_its_steps_and_its_end(
    no_poll: None, client: httpx.Client, story: Story, settings: Settings, make_worker: MakeWorker
) -> None:
    """Its steps are quicker than it may tell, and than anybody is told."""
    job = story.submit(steps=100)
    worker = make_worker(device="stub:0.01")
    redis = Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True)
    with redis, redis.pubsub() as channel, following(client, job) as follower:
        channel.subscribe(PROGRESS_CHANNEL)
        assert follower.next().data == {"state": "queued"}
        worker.notifications.start()
        worker.loop.run(0.01)
        events = list(follower)
        reported = 0
        while message := channel.get_message(timeout=0.2):
            reported += str(job) in str(message["data"])
    assert 2 <= reported < 40
    steps = [event.data["step"] for event in events if event.name == "progress"]
    assert [name for name in names(events) if name != "progress"] == ["state", "state", "image", "end"]
    assert names(events)[:2] == ["state", "progress"]
    assert steps == sorted(set(steps))
    assert 2 <= len(steps) < 40


def test_a_closed_connection_leaves_nothing_behind(api: Api, client: httpx.Client, story: Story) -> None:
    job = story.submit()
    for _ in range(3):
        with following(client, job) as follower:
            follower.next()
            assert watchers(api) == 1
        until(lambda: watchers(api) == 0)
    assert api.app.state.shared.job_watcher._watched == {}
    until(lambda: not api.server.server_state.tasks)


def test_a_hundred_followers_hold_neither_threads_nor_connections(api: Api, story: Story, settings: Settings) -> None:
    """And the job is read once for all of them, and rendered once."""
    job, state, messages = story.submit(), api.app.state.shared, Broker(settings)
    with api.client() as client:
        headers = dict(client.headers)
    read: list[Any] = []
    look = state.job_watcher._read_changed

    def witness(known: Any) -> Any:
        found = look(known)
        read.extend(found)
        return found

    state.job_watcher._read_changed = witness

    async def follow(client: httpx.AsyncClient) -> list[str]:
        async with client.stream("GET", f"/v1/jobs/{job}/events") as answer:
            return [line async for line in answer.aiter_lines() if line.startswith(("event", "data"))]

    async def tell() -> list[list[str]]:
        options: dict[str, Any] = {"base_url": api.url, "timeout": 60, "trust_env": False}
        async with httpx.AsyncClient(headers=headers, limits=httpx.Limits(max_connections=None), **options) as client:
            followers = [asyncio.create_task(follow(client)) for _ in range(100)]
            while watchers(api) < 100:
                await asyncio.sleep(0.02)
            assert state.engine.pool.checkedout() <= 1
            assert (await client.get("/v1/jobs?limit=1")).status_code == 200
            read.clear()
            await asyncio.to_thread(lambda: story.publish(story.started()))
            await asyncio.to_thread(messages.announce_changed, [job])
            return await asyncio.gather(*followers)

    told = asyncio.run(tell())
    assert all(lines == told[0] for lines in told)
    assert [line for line in told[0] if line.startswith("event")][-2:] == ["event: image", "event: end"]
    assert read == [job] or read == [job, job]  # it may see the start, too
    assert watchers(api) == 0


def test_a_client_that_does_not_read_is_disconnected_and_delays_no_other(
    api: Api, client: httpx.Client, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel does not take of him waits in a buffer of bounded size, and nothing else is kept."""
    monkeypatch.setattr("api.live.event_stream.STALLED_S", 1.0)
    job = story.submit(count=64)
    with stalled(api, client, job) as address, following(client, job) as follower:
        follower.next()
        until(lambda: watchers(api) == 2)
        held = 0
        for _ in range(63):
            story.publish(story.started(capacity=1), ImageState.FAILED, error_code="x", error_message="x" * 20_000)
            api.app.state.shared.broker.announce_changed([job])
            assert follower.until("image").data["state"] == "failed"
            held = max(
                held, *(one.transport.get_write_buffer_size() for one in list(api.server.server_state.connections))
            )
        assert 64_000 < held < 200_000  # of 1.3 MB
        story.publish(story.started())
        assert follower.until("end")
        until(lambda: watchers(api) == 0)
        until(lambda: address not in [one.client for one in list(api.server.server_state.connections)])


@contextmanager
def stalled(api: Api, client: httpx.Client, job: UUID) -> Iterator[tuple[str, int]]:
    """A follower who never reads, at the end of a narrow pipe; his address."""
    listening = socket.socket(fileno=os.dup(api.server.servers[0].sockets[0].fileno()))
    with listening, socket.socket() as reader:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(listening.getsockname())
        key = client.headers["Authorization"]
        reader.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n\r\n".encode())
        yield reader.getsockname()


def test_a_server_that_stops_ends_its_streams(story: Story, settings: Settings, database: Engine) -> None:
    job = story.submit()
    with serving(settings, database) as api, api.client() as client, following(client, job) as follower:
        last = follower.next()
        api.server.should_exit = True
        assert list(follower) == []
        until(lambda: watchers(api) == 0)
    story.publish(story.started())
    with serving(settings, database) as api, api.client() as client, following(client, job, last.id) as follower:
        assert names(list(follower)) == ["state", "image", "end"]
