"""Waits for changes of jobs: one Redis subscription and one poll a second serve every waiting request of a process.

A subscription holds neither a thread nor a database connection, and has no queue: only the latest version of each job
is kept, and a subscriber that wakes sends what is new to it. Redis says which rows to read; the rows are the truth.
While Redis is unavailable, the poll finds everything but progress within a second.
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
from common.broker import CHANGED_CHANNEL, PROGRESS_CHANNEL, PUBSUB_OPTIONS, ids_in
from common.errors import Unavailable
from common.log import log_event

POLL_S = 1.0
PROGRESS_S = 0.1  # between two progress events of a job, at least
PROGRESS_EVENTS = 3000  # a second, to all subscribers together: a fifth of a core
WAKE_AT_ONCE = 10  # subscribers; a millisecond
RECONNECT_S = 1.0
STEP = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")

ReadChanged = Callable[[Mapping[UUID, JobVersion | None]], Mapping[UUID, tuple[JobVersion, Job] | None]]


class WatchedJob:
    """The latest version of a job, and who subscribes to it."""

    def __init__(self) -> None:
        self.job: Job | None = None  # its links have no address yet
        self.version: JobVersion | None = None
        self.progress: Progress | None = None
        self.subscriptions: set[Subscription] = set()
        self._events: dict[str, JobEvents] = {}
        self._progress_sent_at = 0.0
        self._progress_timer: asyncio.TimerHandle | None = None

    def update(self, job: Job, version: JobVersion) -> None:
        self.job, self.version = job, version
        self.progress = self.progress or job.progress
        self._events.clear()
        self.notify()

    def update_progress(self, progress: Progress, pause_s: float) -> None:
        """Notify at once, or `pause_s` after the last progress."""
        self.progress = progress
        if self._progress_timer is None:
            loop = asyncio.get_running_loop()
            at = max(self._progress_sent_at + pause_s, loop.time())
            self._progress_timer = loop.call_at(at, self._notify_progress)

    def events(self, base_url: str) -> JobEvents | None:
        """None until the job was read."""
        if self.job and base_url not in self._events:
            self._events[base_url] = JobEvents(self.job, base_url)
        return self._events.get(base_url)

    def notify(self) -> None:
        wake(list(self.subscriptions))

    def close(self) -> None:
        for subscription in self.subscriptions:
            subscription.closed = True
        self.notify()

    def _notify_progress(self) -> None:
        self._progress_timer, self._progress_sent_at = None, asyncio.get_running_loop().time()
        self.notify()


class Subscription:
    """One waiting request. `closed`: the server stops or the job is deleted, so nothing more comes."""

    def __init__(self, watched: WatchedJob) -> None:
        self.watched = watched
        self.closed = False
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Whether the job changed within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def wake(self) -> None:
        self._changed.set()


class JobWatcher:
    """`read_changed` reads those of some jobs whose version is not the known one; None for one that was deleted. It may
    block: it runs in a thread.
    """

    def __init__(self, redis_url: str, read_changed: ReadChanged) -> None:
        self._redis_url = redis_url
        self._read_changed = read_changed
        self.subscriber_count = 0
        self._watched: dict[UUID, WatchedJob] = {}
        self._dirty: set[UUID] = set()  # whose rows may have changed
        self._dirty_event = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def wait(self, job_id: UUID, seconds: float) -> Job | None:
        """The job once it has ended; None when the time is up or the watcher is closed."""
        with self.watch(job_id) as subscription, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not subscription.closed:
                    if (job := subscription.watched.job) and job.has_ended:
                        return job
                    await subscription.wait(seconds)
        return None

    @contextmanager
    def watch(self, job_id: UUID) -> Iterator[Subscription]:
        """Subscribe to a job. The caller checks who may see it."""
        watched = self._watched.setdefault(job_id, WatchedJob())
        subscription = Subscription(watched)
        subscription.closed = self._closed
        watched.subscriptions.add(subscription)
        self.subscriber_count += 1
        self._mark_dirty({job_id})
        try:
            yield subscription
        finally:
            self.subscriber_count -= 1
            watched.subscriptions.discard(subscription)
            if not watched.subscriptions:
                self._watched.pop(job_id, None)

    def open(self) -> None:
        """Start the subscription and the poll. Needs a running event loop."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._keep_reading())]

    async def close(self) -> None:
        """Close all subscriptions: a server that stops does not wait for them."""
        self._closed = True
        for watched in self._watched.values():
            watched.close()
        pending = set(self._tasks)
        while pending:  # more than once: redis-py swallows a cancellation while it connects
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.2)

    # Redis

    async def _listen(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self._receive()
            await asyncio.sleep(RECONNECT_S)

    async def _receive(self) -> None:
        redis = Redis.from_url(self._redis_url, **PUBSUB_OPTIONS)
        async with redis, redis.pubsub() as pubsub:
            await pubsub.subscribe(CHANGED_CHANNEL, PROGRESS_CHANNEL)
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
                if message and message["channel"] == CHANGED_CHANNEL:
                    self._mark_dirty(ids_in(message["data"]))
                elif message:
                    self._update_progress(message["data"])

    def _update_progress(self, message: str) -> None:
        step, _, ids = message.partition(" ")
        if found := STEP.fullmatch(step):
            progress = Progress(step=int(found[1]), steps=int(found[2]))
            pause_s = max(PROGRESS_S, self.subscriber_count / PROGRESS_EVENTS)
            for job_id in ids_in(ids) & self._watched.keys():
                self._watched[job_id].update_progress(progress, pause_s)

    # Rows

    def _mark_dirty(self, job_ids: set[UUID]) -> None:
        self._dirty |= job_ids & self._watched.keys()
        if self._dirty:
            self._dirty_event.set()

    async def _keep_reading(self) -> None:
        """Read dirty rows at once, and all watched rows every second; one read at a time."""
        clock = asyncio.get_running_loop().time
        poll_at = clock() + POLL_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._dirty_event.wait()
            self._dirty_event.clear()
            if clock() >= poll_at:
                self._dirty, poll_at = set(self._watched), clock() + POLL_S
            dirty, self._dirty = self._dirty, set()
            await self._read({job_id: self._watched[job_id].version for job_id in dirty & self._watched.keys()})

    async def _read(self, known: Mapping[UUID, JobVersion | None]) -> None:
        if not known:
            return
        try:
            found = await run_in_threadpool(self._read_changed, known)
        except Unavailable:
            return  # the next poll reads again
        except Exception:
            return log_event("request_failed", exc_info=True, path="the poll of the job watcher")
        for job_id, change in found.items():
            if (watched := self._watched.get(job_id)) and change:
                version, job = change
                watched.update(job, version)
            elif watched:
                watched.close()


def wake(subscriptions: Sequence[Subscription]) -> None:
    """Wake some, and the rest in later turns of the event loop, so that other requests are served in between."""
    for subscription in subscriptions[:WAKE_AT_ONCE]:
        subscription.wake()
    if rest := subscriptions[WAKE_AT_ONCE:]:
        asyncio.get_running_loop().call_soon(wake, rest)
