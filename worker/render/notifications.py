"""Notifications over Redis, beside Celery's messages: receives cancellations; publishes changes and progress.

Losing one costs time only: the heartbeat reads cancellations too, and whoever watches a job reads its row every second.
The threads are its own: however slow Redis is, nothing that renders or stores waits for it.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from common.broker import CANCELLED_CHANNEL, PUBSUB_OPTIONS, Broker, ids_in
from common.config import Settings
from worker.availability import Availability
from worker.render.inflight import HeldLeases, InflightMicrobatch

PROGRESS_S = 0.1  # between two reports of progress, however quick the steps are
RECONNECT_S = 1.0


class Notifications:
    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        held_leases: HeldLeases,
        current: Callable[[], InflightMicrobatch | None],
    ) -> None:
        """`current` returns the microbatch that is being rendered, or was last."""
        self._redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=5, **PUBSUB_OPTIONS)
        self._broker = broker
        self._held_leases = held_leases
        self._current = current
        self._changed: SimpleQueue[set[UUID]] = SimpleQueue()
        self._published: tuple[InflightMicrobatch, int] | None = None  # the last one that was published, and its step
        self._availability = Availability("redis_away", "redis_back")
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, name="cancellations", daemon=True),
            threading.Thread(target=self._publish, name="progress", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def announce_soon(self, job_ids: Iterable[UUID]) -> None:
        """Publish that these jobs have changed. Returns at once."""
        self._changed.put(set(job_ids))

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(6)

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._receive_cancellations()
            except (RedisError, OSError) as error:
                self._availability.mark_down(type(error).__name__)
                self._stopping.wait(RECONNECT_S)

    def _receive_cancellations(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(CANCELLED_CHANNEL)
            self._availability.mark_up()
            while not self._stopping.is_set():
                if message := channel.get_message(timeout=0.5):
                    self._held_leases.cancel_jobs(ids_in(message["data"]))

    def _publish(self) -> None:
        progress_at = 0.0
        while not self._stopping.is_set():
            self._broker.announce_changed(self._take_changed(PROGRESS_S))
            if time.monotonic() >= progress_at:
                progress_at = time.monotonic() + PROGRESS_S
                self._publish_progress()
        self._broker.announce_changed(self._take_changed(0))

    def _take_changed(self, seconds: float) -> set[UUID]:
        """All jobs that have changed since the last call; waits so long for the first."""
        changed: set[UUID] = set()
        with suppress(Empty):
            changed |= self._changed.get(timeout=seconds)
            while True:
                changed |= self._changed.get_nowait()
        return changed

    def _publish_progress(self) -> None:
        """Publish the step of the current microbatch; of a new one, that its jobs have started."""
        current = self._current()
        if current is None or (current, current.step) == self._published:
            return
        jobs = {image.job_id for image in current.images}
        if self._published is None or self._published[0] is not current:
            self._broker.announce_changed(jobs)
        self._published = (current, current.step)
        if current.step:
            self._broker.report_progress(jobs, current.step, current.steps)
