"""The waiting room: whoever waits for news of a job. One subscription and one poll a second serve all of them.

One who waits holds neither a thread nor a database connection, and there is no queue of news for anybody: of each job
the latest is known, and who wakes sees what of it is new to him. Redis says which rows to look at; the row is the
truth. While Redis is away the poll finds everything but progress within a second.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.live.job_events import JobEvents
from api.queries.jobs import JobVersion
from api.schemas import Job, Progress
from common.broker import CHANGED_CHANNEL, PROGRESS_CHANNEL
from common.errors import Unavailable
from common.log import log_event

POLL_S = 1.0
PROGRESS_S = 0.1  # at most ten times a second, however many workers render a job
PROGRESS_TOLD = 3000  # times a second, to all who wait together: a fifth of a core, so that the rest is told at once
WOKEN_AT_ONCE = 10  # a millisecond
RECONNECT_S = 1.0
STEP = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")

ReadChanged = Callable[[Mapping[UUID, JobVersion | None]], Mapping[UUID, tuple[JobVersion, Job]]]


class WatchedJob:
    """The latest that is known of a job, for all who wait for news of it."""

    def __init__(self) -> None:
        self.job: Job | None = None  # its links have no address yet
        self.mark: JobVersion | None = None
        self.progress: Progress | None = None
        self.watchers: set[Subscription] = set()
        self._accounts: dict[str, JobEvents] = {}
        self._told_at = 0.0
        self._will_tell: asyncio.TimerHandle | None = None

    def learn(self, job: Job, mark: JobVersion) -> None:
        self.job, self.mark = job, mark
        self.progress = self.progress or job.progress
        self._accounts.clear()
        self.tell()

    def advance(self, progress: Progress, pause_s: float) -> None:
        self.progress = progress
        if self._will_tell is None:
            loop = asyncio.get_running_loop()
            self._will_tell = loop.call_at(max(self._told_at + pause_s, loop.time()), self._tell_progress)

    def account(self, base_url: str) -> JobEvents | None:
        if self.job and base_url not in self._accounts:
            self._accounts[base_url] = JobEvents(self.job, base_url)
        return self._accounts.get(base_url)

    def tell(self) -> None:
        wake(list(self.watchers))

    def _tell_progress(self) -> None:
        self._will_tell, self._told_at = None, asyncio.get_running_loop().time()
        self.tell()


class Subscription:
    """One who waits for news of a job."""

    def __init__(self, watched: WatchedJob) -> None:
        self.watched = watched
        self.is_sent_away = False
        self._news = asyncio.Event()

    async def news(self, seconds: float) -> bool:
        """Whether there was any within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def wake(self) -> None:
        self._news.set()


class JobWatcher:
    """`read_changed` reads those of some jobs that are not as they are known; it may block, and runs in a thread."""

    def __init__(self, redis_url: str, read_changed: ReadChanged) -> None:
        self._redis_url = redis_url
        self._read_changed = read_changed
        self.waiting = 0  # how many wait
        self._watched: dict[UUID, WatchedJob] = {}
        self._suspects: set[UUID] = set()  # whose rows may have changed
        self._suspicion = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def wait(self, job_id: UUID, seconds: float) -> Job | None:
        """The job once it has ended; None when the time is up or the room is closed."""
        with self.watch(job_id) as watcher, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not watcher.is_sent_away:
                    if (job := watcher.watched.job) and job.has_ended:
                        return job
                    await watcher.news(seconds)
        return None

    @contextmanager
    def watch(self, job_id: UUID) -> Iterator[Subscription]:
        """Wait for news of a job, from what is known of it at first. Whether one may is for the caller to know."""
        watched = self._watched.setdefault(job_id, WatchedJob())
        watcher = Subscription(watched)
        watcher.is_sent_away = self._closed
        watched.watchers.add(watcher)
        self.waiting += 1
        self._suspect({job_id})
        try:
            yield watcher
        finally:
            self.waiting -= 1
            watched.watchers.discard(watcher)
            if not watched.watchers:
                self._watched.pop(job_id, None)

    def open(self) -> None:
        """Begin to listen and to look. For the start of the event loop."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._keep_looking())]

    async def close(self) -> None:
        """Send everybody away: a server that stops has no time to wait."""
        self._closed = True
        for watched in self._watched.values():
            for watcher in watched.watchers:
                watcher.is_sent_away = True
            watched.tell()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What Redis says

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
            await news.subscribe(CHANGED_CHANNEL, PROGRESS_CHANNEL)
            while True:
                message = await news.get_message(ignore_subscribe_messages=True, timeout=5)
                if message and message["channel"] == CHANGED_CHANNEL:
                    self._suspect(ids_in(message["data"]))
                elif message:
                    self._advance(message["data"])

    def _advance(self, message: str) -> None:
        step, _, ids = message.partition(" ")
        if found := STEP.fullmatch(step):
            progress = Progress(step=int(found[1]), steps=int(found[2]))
            pause_s = max(PROGRESS_S, self.waiting / PROGRESS_TOLD)
            for job_id in ids_in(ids) & self._watched.keys():
                self._watched[job_id].advance(progress, pause_s)

    # What the rows say

    def _suspect(self, job_ids: set[UUID]) -> None:
        self._suspects |= job_ids & self._watched.keys()
        if self._suspects:
            self._suspicion.set()

    async def _keep_looking(self) -> None:
        """Look at the rows that may have changed, at once, and at all of them every second: one look at a time."""
        clock = asyncio.get_running_loop().time
        poll_at = clock() + POLL_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._suspicion.wait()
            self._suspicion.clear()
            if clock() >= poll_at:
                self._suspects, poll_at = set(self._watched), clock() + POLL_S
            suspects, self._suspects = self._suspects, set()
            await self._look_at({job_id: self._watched[job_id].mark for job_id in suspects & self._watched.keys()})

    async def _look_at(self, known: Mapping[UUID, JobVersion | None]) -> None:
        if not known:
            return
        try:
            found = await run_in_threadpool(self._read_changed, known)
        except Unavailable:
            return  # whoever submits is told so
        except Exception:
            return log_event("request_failed", exc_info=True, path="the waiting room's poll")
        for job_id, (mark, job) in found.items():
            if watched := self._watched.get(job_id):
                watched.learn(job, mark)


def wake(watchers: Sequence[Subscription]) -> None:
    """Some at a time, and the rest after whatever else has come: nobody waits until a thousand have been told."""
    for watcher in watchers[:WOKEN_AT_ONCE]:
        watcher.wake()
    if rest := watchers[WOKEN_AT_ONCE:]:
        asyncio.get_running_loop().call_soon(wake, rest)


def ids_in(data: str) -> set[UUID]:
    """The ids in a message; what is none is no concern of ours."""
    found = set()
    for word in data.split():
        with suppress(ValueError):
            found.add(UUID(word))
    return found
