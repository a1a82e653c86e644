"""News over Redis beside Celery's messages: cancellations come in; what changed, and progress, go out.

Losing any of it costs time only: the heartbeat learns of cancellations too, a beat later, and who watches a job looks
at its row every second. Has threads of its own: however slow Redis is, nothing that renders or stores waits for it.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from common.broker import CANCELLED_CHANNEL, Broker
from common.config import Settings
from common.log import log_event
from worker.availability import Availability
from worker.render.inflight import HeldLeases, InflightMicrobatch

PROGRESS_S = 0.1  # at most ten times a second, however quick the steps are
POLICY_S = 5.0  # Redis can be told to evict at any time
RECONNECT_S = 1.0


class Notifications:
    def __init__(
        self,
        settings: Settings,
        messages: Broker,
        holdings: HeldLeases,
        rendering: Callable[[], InflightMicrobatch | None],
    ) -> None:
        self._redis = Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=5,
            socket_connect_timeout=3,
            socket_keepalive=True,
            health_check_interval=5,
            decode_responses=True,
        )
        self._messages = messages
        self._holdings = holdings
        self._rendering = rendering
        self._changed: SimpleQueue[set[UUID]] = SimpleQueue()
        self._told: tuple[InflightMicrobatch, int] | None = None  # the rendering that was told of last, and its step
        self._outage = Availability("redis_away", "redis_back")
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._hear, name="cancellations", daemon=True),
            threading.Thread(target=self._tell, name="progress", daemon=True),
            threading.Thread(target=self._watch_policy, name="policy", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def changed(self, job_ids: Iterable[UUID]) -> None:
        """Have those told who watch these jobs. Returns at once."""
        self._changed.put(set(job_ids))

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(6)

    def _hear(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (RedisError, OSError) as error:
                self._outage.began(type(error).__name__)
                self._stopping.wait(RECONNECT_S)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(CANCELLED_CHANNEL)
            self._outage.ended()
            while not self._stopping.is_set():
                if message := channel.get_message(timeout=0.5):
                    self._holdings.cancelled(_ids(message["data"]))

    def _tell(self) -> None:
        report_at = 0.0
        while not self._stopping.is_set():
            self._messages.announce_changed(self._changes(PROGRESS_S))
            if time.monotonic() >= report_at:
                report_at = time.monotonic() + PROGRESS_S
                self._report()
        self._messages.announce_changed(self._changes(0))

    def _changes(self, seconds: float) -> set[UUID]:
        """All jobs that have changed since the last time; waits so long for the first."""
        changes: set[UUID] = set()
        with suppress(Empty):
            changes |= self._changed.get(timeout=seconds)
            while True:
                changes |= self._changed.get_nowait()
        return changes

    def _report(self) -> None:
        """Tell how far the microbatch at hand has come; of a new one, that its jobs have started."""
        rendering = self._rendering()
        if rendering is None or (rendering, rendering.step) == self._told:
            return
        jobs = {image.job_id for image in rendering.images or ()}
        if self._told is None or self._told[0] is not rendering:
            self._messages.announce_changed(jobs)
        self._told = (rendering, rendering.step)
        if rendering.step:
            self._messages.report_progress(jobs, rendering.step, rendering.steps)

    def _watch_policy(self) -> None:
        told = None
        while not self._stopping.wait(POLICY_S):
            policy = self._messages.eviction_policy()
            if policy not in (None, "noeviction", told):
                log_event("redis_evicts", policy=policy)
            told = policy or told


def _ids(text: str) -> set[UUID]:
    """Anyone who reaches Redis can write there: what is no id is no news."""
    ids = set()
    for word in text.split():
        try:
            ids.add(UUID(word))
        except ValueError:
            continue
    return ids
