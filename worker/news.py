"""News over Redis beside Celery's messages: cancellations come in, progress goes out. Losing any of it costs time only.

The heartbeat learns of cancellations too, a beat later; nobody waits for progress.
"""

import threading
from collections.abc import Callable
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from common.config import Settings
from common.queue import UNWANTED_CHANNEL, Messages
from common.telemetry import tell
from worker.brush import Rendering
from worker.holdings import Holdings
from worker.outage import Outage

PROGRESS_S = 0.5
POLICY_S = 5.0  # Redis can be told to evict at any time
RECONNECT_S = 1.0


class News:
    def __init__(
        self, settings: Settings, messages: Messages, holdings: Holdings, rendering: Callable[[], Rendering | None]
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
        self._outage = Outage("redis_away", "redis_back")
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._hear, name="cancellations", daemon=True),
            threading.Thread(target=self._report, name="progress", daemon=True),
            threading.Thread(target=self._watch_policy, name="policy", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

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
            channel.subscribe(UNWANTED_CHANNEL)
            self._outage.ended()
            while not self._stopping.is_set():
                if message := channel.get_message(timeout=0.5):
                    self._holdings.cancelled(_ids(message["data"]))

    def _report(self) -> None:
        told: tuple[Rendering, int] | None = None
        while not self._stopping.wait(PROGRESS_S):
            rendering = self._rendering()
            if rendering and rendering.step and (rendering, rendering.step) != told:
                told = (rendering, rendering.step)
                jobs = {image.job_id for image in rendering.images or ()}
                self._messages.report_progress(jobs, rendering.step, rendering.steps)

    def _watch_policy(self) -> None:
        told = None
        while not self._stopping.wait(POLICY_S):
            policy = self._messages.eviction_policy()
            if policy not in (None, "noeviction", told):
                tell("redis_evicts", policy=policy)
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
