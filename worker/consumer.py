"""Celery's consumer, as a worker runs it. Knows no task.

It must not grow while Redis is away. It writes nothing there (see `common.broker`), so that a full one does not disturb
it; what else does ends in `Reconnection`.
"""

import logging
import socket
import time
import warnings
from typing import Any

from celery import Celery
from celery.bootsteps import RUN, StartStopStep
from celery.signals import setup_logging, task_postrun
from kombu.asynchronous import get_event_loop

from common.broker import queue_named

TASK_ENDS_S = 0.01
RECONNECT_S = 1.0  # between two connections that are lost


def consume(app: Celery, name: str, queues: list[str], threads: int = 1) -> int:
    """Run Celery until the process is asked to stop. In threads: CUDA and torch do not survive a fork."""
    setup_logging.connect(lambda **_: None, weak=False)  # `common.log` has done it
    # It logs a traceback every few seconds while Redis is away; `Broker` logs one line.
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*superuser privileges")  # that is about pickle; we accept JSON only
    task_postrun.connect(fetch_next_message, weak=False)
    app.conf.task_queues = [queue_named(queue) for queue in queues]
    # Our messages are acknowledged early, so none is cancelled; this only prevents a warning at each lost connection.
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
    app.steps["consumer"].add(Reconnection)
    worker: Any = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        pool="threads",
        concurrency=threads,
        queues=queues,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def fetch_next_message(**_: object) -> None:
    """Wake Celery's event loop after a task: it fetches one message at a time, and would do so up to a second later."""
    hub = get_event_loop()
    if hub:  # a moment later, when the task counts as ended
        hub.call_soon(hub.call_later, TASK_ENDS_S, lambda: None)


class Reconnection(StartStopStep):
    """What Celery leaves out after a lost connection, or an error that Redis answered: to wait, since it would connect
    six times a second; and to remove the callback of the old connection, which its event loop calls for ever.
    """

    def __init__(self, consumer: Any, **_: object) -> None:
        super().__init__(consumer)
        self._lost_at = 0.0

    def stop(self, consumer: Any) -> None:
        if consumer.blueprint.state == RUN:  # at the end of the process it is another
            consumer.hub.on_tick.clear()
            time.sleep(max(0.0, self._lost_at + RECONNECT_S - time.monotonic()))
            self._lost_at = time.monotonic()
