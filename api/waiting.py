"""The waiting room: requests that wait for a job to end. One subscription and one poll a second serve all of them.

A waiter holds neither a thread nor a database connection. Redis brings the news at once; while it is away, the poll
does within a second.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from common.errors import Unavailable
from common.queue import CHANGED_CHANNEL
from common.telemetry import tell

POLL_S = 1.0
RECONNECT_S = 1.0


class WaitingRoom:
    """`ended` says which of some jobs have ended; it may block, and runs in a thread."""

    def __init__(self, redis_url: str, ended: Callable[[list[UUID]], Iterable[UUID]]) -> None:
        self._redis_url = redis_url
        self._ended = ended
        self._waiting: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(events) for events in self._waiting.values())

    async def wait(self, job_id: UUID, seconds: float) -> None:
        """Wait until the job has ended, the time is up, or the room is closed."""
        if self._closed:
            return
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def open(self) -> None:
        """Begin to listen and to poll. For the start of the event loop."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]

    async def close(self) -> None:
        """Send everybody away: a server that stops has no time to wait."""
        self._closed = True
        self._tell(list(self._waiting))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell(self, job_ids: Iterable[UUID]) -> None:
        for job_id in job_ids:
            for event in self._waiting.get(job_id, ()):
                event.set()

    async def _listen(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self._hear()
            await asyncio.sleep(RECONNECT_S)

    async def _hear(self) -> None:
        redis = Redis.from_url(
            self._redis_url,
            decode_responses=True,
            socket_connect_timeout=3,
            socket_keepalive=True,
            health_check_interval=5,
        )
        async with redis, redis.pubsub() as news:
            await news.subscribe(CHANGED_CHANNEL)
            while True:
                message = await news.get_message(ignore_subscribe_messages=True, timeout=5)
                if message:
                    await self._look_at([job for job in ids_in(message["data"]) if job in self._waiting])

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._look_at(list(self._waiting))

    async def _look_at(self, job_ids: list[UUID]) -> None:
        if job_ids:
            try:
                self._tell(await run_in_threadpool(self._ended, job_ids))
            except Unavailable:
                pass  # whoever submits is told so
            except Exception:
                tell("request_failed", exc_info=True, path="the waiting room's poll")


def ids_in(data: str) -> list[UUID]:
    """The ids in a message; what is none is no concern of ours."""
    found = []
    for word in data.split():
        with suppress(ValueError):
            found.append(UUID(word))
    return found
