"""Redis: Celery messages that wake workers, and pub/sub of changes and progress. Losing any of it costs time only.

Knows no table: Postgres decides at the claim whether a message leads to work. Nothing here raises while Redis is away:
the methods return False, and the sweep sends again.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from common.config import Settings
from common.log import log_event

CONTROL_QUEUE = "control"
CHANGED_CHANNEL = "huafang:changed"  # ids of jobs that have started, stored an image or ended
PROGRESS_CHANNEL = "huafang:progress"  # step/steps, and the ids of the jobs
CANCELLED_CHANNEL = "huafang:cancelled"  # ids of jobs that were cancelled
MESSAGE_EXPIRES_S = 300
QUIET_S = 2.0  # without calls after a failure, so that a submission never waits for two time-outs
BURST_S = 0.02
PROGRESS_EXPIRES_S = 120
PROBE_KEY = "huafang:probe"  # written to see whether Redis takes anything
PUBSUB_OPTIONS: Mapping[str, Any] = {  # of a client that subscribes, synchronous or not
    "decode_responses": True,
    "encoding_errors": "replace",  # anyone who reaches Redis can write there: bytes must not end who listens
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 5,
}


def render_queue(model: str) -> str:
    """The queue of the workers that serve a model."""
    return f"render.{model}"


def queue_named(name: str) -> Queue:
    """A queue as Celery wants it. Nobody declares it: that writes to Redis, and messages need no more than its name."""
    return Queue(name, Exchange(name), routing_key=name, no_declare=True)  # type: ignore[no-untyped-call]


def celery_app(settings: Settings, *, socket_timeout: float = 10) -> Celery:
    """The Celery application of producers and workers. JSON only, no results, no remote control.

    Who only consumes writes nothing to Redis but the removal of messages, which a full Redis allows.
    """
    app = Celery("huafang", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_store_errors_even_if_ignored=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a full Redis refuses a command; the worker goes on
        broker_transport_options={
            "socket_timeout": socket_timeout,
            "socket_connect_timeout": min(3, socket_timeout),
            "socket_keepalive": True,
            "health_check_interval": 5,
            "max_retries": 0,  # of a connection to send with: who waits for it is a request; Celery tries for 4 s
            "ack_emulation": False,  # it keeps a copy of what a worker took, for longer than our messages are valid
        },
        timezone="UTC",
    )
    return app


def ids_in(data: str) -> set[UUID]:
    """The ids in a message. Anyone who reaches Redis can write there, so other words are ignored."""
    found = set()
    for word in data.split():
        with suppress(ValueError):
            found.add(UUID(word))
    return found


class Broker:
    """The sending side, for the API and the workers. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings, socket_timeout=0.5)
        self._redis = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=0.5, socket_connect_timeout=0.5, decode_responses=True
        )
        self._lock = threading.Lock()
        self._woken_at: dict[str, float] = {}  # by model: when a message was last sent
        self._scheduled: set[str] = set()  # models with a message at the end of the burst
        self._quiet_until = 0.0
        self._is_away = False

    def wake(self, model: str, *, job_id: UUID | None = None, tier: str | None = None) -> bool:
        """Wake a worker that serves this model. The message names the job that caused it, if there is one."""
        return self._try(
            lambda: self._app.send_task(
                "render",
                kwargs={"model": model, "job": str(job_id) if job_id else None, "tier": tier},
                task_id=str(job_id) if job_id else None,
                queue=queue_named(render_queue(model)),
                expires=MESSAGE_EXPIRES_S,
                retry=False,
                ignore_result=True,
            )
        )

    def wake_soon(self, model: str, job_id: UUID, tier: str) -> None:
        """Wake a worker for a job: at once, or with one message for all jobs of a burst of 20 ms.

        One message per job would add half to the cost of a submission. A worker that leaves work waiting wakes another.
        """
        with self._lock:
            if model in self._scheduled:
                return
            wait = self._woken_at.get(model, 0.0) + BURST_S - time.monotonic()
            if wait > 0:
                self._scheduled.add(model)
                timer = threading.Timer(wait, self._wake_late, (model, job_id, tier))
                timer.daemon = True  # if this process ends, the sweep sends again
                return timer.start()
            self._woken_at[model] = time.monotonic()
        self.wake(model, job_id=job_id, tier=tier)

    def _wake_late(self, model: str, job_id: UUID, tier: str) -> None:
        with self._lock:  # jobs added until now are committed before the message
            self._scheduled.discard(model)
            self._woken_at[model] = time.monotonic()
        self.wake(model, job_id=job_id, tier=tier)

    def announce_changed(self, job_ids: Iterable[UUID]) -> bool:
        """Publish that these jobs have started, stored an image, or ended."""
        return self._publish(CHANGED_CHANNEL, job_ids)

    def announce_cancelled(self, job_ids: Sequence[UUID]) -> bool:
        """Publish to workers and watchers that these jobs were cancelled."""
        return self._publish(CANCELLED_CHANNEL, job_ids) and self._publish(CHANGED_CHANNEL, job_ids)

    def advance(self, batch_id: UUID) -> bool:
        """Let a control worker check, expand or settle a batch."""
        return self._control("advance", batch=str(batch_id))

    def export(self, dataset_id: UUID) -> bool:
        """Let a control worker write the next part of a dataset."""
        return self._control("export", dataset=str(dataset_id))

    def report_progress(self, job_ids: Iterable[UUID], step: int, steps: int) -> bool:
        """Publish the denoising step of these jobs, and keep it for 120 s for `progress`."""
        ids = [str(job_id) for job_id in job_ids]

        def send() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in ids:
                pipeline.set(f"huafang:progress:{job_id}", f"{step}/{steps}", ex=PROGRESS_EXPIRES_S)
            pipeline.publish(PROGRESS_CHANNEL, " ".join([f"{step}/{steps}", *ids]))
            pipeline.execute()

        return self._try(send)

    def progress(self, job_ids: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
        """(step, steps) of the jobs whose progress is known."""
        found: list[Any] = []
        if job_ids:
            self._try(lambda: found.extend(self._redis.mget([f"huafang:progress:{job_id}" for job_id in job_ids])))
        steps = (value.split("/") if value else None for value in found)
        return {job: (int(step[0]), int(step[1])) for job, step in zip(job_ids, steps, strict=False) if step}

    def store_ticket(self, digest: str, key_id: UUID, seconds: int) -> bool:
        """Store the id of an API key under the digest of a ticket, for so many seconds."""
        return self._try(lambda: self._redis.set(f"huafang:ticket:{digest}", str(key_id), ex=seconds))

    def take_ticket(self, digest: str) -> UUID | None:
        """The id under the digest of a ticket, which is deleted."""
        found: list[Any] = []
        self._try(lambda: found.append(self._redis.getdel(f"huafang:ticket:{digest}")))
        return UUID(found[0]) if found and found[0] else None

    def eviction_policy(self) -> str | None:
        """The maxmemory-policy: any but `noeviction` may lose messages. None while Redis is away."""
        policy: list[str] = []
        self._try(lambda: policy.append(str(self._redis.info("memory").get("maxmemory_policy"))))
        return policy[0] if policy else None

    def _control(self, task: str, **message: str) -> bool:
        return self._try(
            lambda: self._app.send_task(
                task,
                kwargs=message,
                queue=queue_named(CONTROL_QUEUE),
                expires=MESSAGE_EXPIRES_S,
                retry=False,
                ignore_result=True,
            )
        )

    def _publish(self, channel: str, job_ids: Iterable[UUID]) -> bool:
        ids = " ".join(str(job_id) for job_id in job_ids)
        return not ids or self._try(lambda: self._redis.publish(channel, ids))

    def _try(self, send: Callable[[], object]) -> bool:
        if time.monotonic() < self._quiet_until:
            return False
        try:
            if self._is_away:  # Celery's client makes new connections for each command that fails, this one does not
                self._redis.set(PROBE_KEY, "", ex=1)
            send()
        except (RedisError, OperationalError, OSError) as error:
            self._quiet_until = time.monotonic() + QUIET_S
            if not self._is_away:
                self._is_away = True
                log_event("redis_away", reason=type(error).__name__)
            return False
        if self._is_away:
            self._is_away = False
            log_event("redis_back")
        return True
