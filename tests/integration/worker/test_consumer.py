"""Celery's consumer and senders, and a Redis that refuses: what they still do, and that they do not grow."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import psutil
import pytest
from celery.bootsteps import CLOSE, RUN
from kombu.asynchronous import Hub
from pydantic import SecretStr
from redis import Redis

from common.broker import Broker, render_queue
from common.config import Settings
from embedded.servers import Servers
from tests.support.stories import Story
from tests.support.workers import QUICK, running, until
from worker.consumer import RECONNECT_S, Reconnection

FULL, NOT_FULL = ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")
READ_ONLY, WRITABLE = ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")


class OwnRedis:
    """A Redis that no other test uses, and a worker that listens to it."""

    def __init__(self, settings: Settings, redis: Redis, worker: Popen[bytes]) -> None:
        self.settings = settings
        self.redis = redis
        self.worker = worker
        until(self.listener)

    def listener(self) -> str | None:
        """The address of the connection on which the worker waits for messages."""
        waiting = [client["addr"] for client in self.redis.client_list() if client["cmd"] == "brpop"]
        return waiting[0] if waiting else None

    def cut_off(self) -> None:
        self.redis.client_kill(self.listener() or "")

    def descriptors(self) -> int:
        return int(psutil.Process(self.worker.pid).num_fds())


@pytest.fixture
def own_redis(story: Story, settings: Settings, tmp_path: Path) -> Iterator[OwnRedis]:
    with redis_alone(settings, tmp_path) as url:
        own = settings.model_copy(update={"redis_url": SecretStr(url)})
        with (
            running(tmp_path, own, "render", "--device", "stub", **QUICK) as worker,
            Redis.from_url(url, decode_responses=True) as redis,
        ):
            yield OwnRedis(own, redis, worker)
            assert worker.poll() is None


def connections_ever_made(redis: Redis) -> int:
    return int(redis.info("stats")["total_connections_received"])


@contextmanager
def redis_alone(settings: Settings, home: Path) -> Iterator[str]:
    servers = Servers(home / "redis")
    servers.start("valkey")
    try:
        yield servers.instance.environment(settings)["HUAFANG_REDIS_URL"]
    finally:
        servers.stop()


def test_a_worker_begins_to_listen_to_a_full_redis_and_takes_what_is_there(own_redis: OwnRedis) -> None:
    """With a write on the way it would begin again and again, and each time keep two connections."""
    redis, before = own_redis.redis, own_redis.descriptors()
    assert Broker(own_redis.settings).wake("another-model")
    redis.execute_command(*FULL)
    own_redis.cut_off()
    redis.rename(render_queue("another-model"), render_queue("mini-zh"))
    until(lambda: redis.llen(render_queue("mini-zh")) == 0)
    until(own_redis.listener)
    assert own_redis.descriptors() <= before + 1
    assert "errorstat_OOM" not in redis.info("errorstats")


def test_a_worker_tries_again_once_a_second_while_redis_refuses_to_hand_out(own_redis: OwnRedis) -> None:
    redis, before = own_redis.redis, own_redis.descriptors()

    def refusals() -> int:
        return int(redis.info("errorstats").get("errorstat_READONLY", {}).get("count", 0))

    redis.execute_command(*READ_ONLY)
    until(lambda: refusals() >= 2)
    (seconds, _), connected, refused = redis.time(), connections_ever_made(redis), refusals()
    until(lambda: refusals() >= refused + 3)
    passed = redis.time()[0] - seconds
    assert connections_ever_made(redis) - connected <= 3 * (passed + 2)  # of a consumer, at most three each time
    assert passed >= 2 * RECONNECT_S - 1
    assert own_redis.descriptors() <= before + 3
    redis.execute_command(*WRITABLE)
    until(own_redis.listener)


def test_a_sender_makes_no_connections_while_redis_is_full(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.broker.QUIET_S", 0.0)
    with redis_alone(settings, tmp_path) as url, Redis.from_url(url, decode_responses=True) as redis:
        broker = Broker(settings.model_copy(update={"redis_url": SecretStr(url)}))
        assert broker.wake("mini-zh")
        redis.execute_command(*FULL)
        assert [broker.wake("mini-zh") for _ in range(2)] == [False, False]
        connected = connections_ever_made(redis)
        assert [broker.wake("mini-zh") for _ in range(10)] == [False] * 10
        assert connections_ever_made(redis) == connected
        redis.execute_command(*NOT_FULL)
        assert broker.wake("mini-zh")
        assert redis.llen(render_queue("mini-zh")) == 2


def test_a_sender_tries_once_while_redis_is_silent(settings: Settings) -> None:
    """A submission waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        broker = Broker(settings.model_copy(update={"redis_url": SecretStr(url)}))
        assert not broker.wake("mini-zh")
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_nothing_of_a_lost_connection_stays_in_the_event_loop() -> None:
    consumer = SimpleNamespace(hub=Hub(), blueprint=SimpleNamespace(state=RUN))
    step = Reconnection(consumer)
    consumer.hub.on_tick.add(print)
    step.stop(consumer)
    assert consumer.hub.on_tick == set()
    consumer.blueprint.state = CLOSE  # what is running now still needs it
    consumer.hub.on_tick.add(print)
    step.stop(consumer)
    assert consumer.hub.on_tick == {print}
