"""Tasks that do nothing, for Celery and for Dramatiq on one Redis: `python -m bench.harness.noops celery | dramatiq`.

One process, one thread, each as its manual starts it. Celery is measured twice: as it comes, and with late
acknowledgement, which is what one takes when work must not be lost with its worker.
"""

import os
import sys
import time
from typing import Any

import dramatiq
from celery import Celery
from dramatiq.brokers.redis import RedisBroker
from redis import Redis

MARKS = "bench:marks"  # when a marked task ran: the first one and the last one


def tasks(kind: str, url: str) -> tuple[Any, Any]:
    """The application or broker of a kind, and its task, which notes the time if it is marked and does nothing else."""
    redis = Redis.from_url(url)

    def noop(mark: bool) -> None:
        if mark:
            redis.rpush(MARKS, time.time())

    if kind.startswith("celery"):
        app = Celery("noops", broker=url, set_as_current=False)
        app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
        app.conf.task_acks_late = kind == "celery late"
        return app, app.task(name="noop")(noop)
    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)
    return broker, dramatiq.actor(actor_name="noop", queue_name="noops")(noop)


def send(kind: str, url: str, count: int) -> None:
    """So many tasks, of which the first and the last are marked."""
    _, task = tasks(kind, url)
    for number in range(count):
        mark = number in (0, count - 1)
        if kind == "dramatiq":
            task.send(mark)
        else:
            task.apply_async(args=[mark], queue="noops")


def main(kind: str) -> None:
    app, _ = tasks(kind, os.environ["BENCH_REDIS_URL"])
    if kind == "dramatiq":
        worker = dramatiq.Worker(app, worker_threads=1)
        worker.start()
        worker.join()
        while True:
            time.sleep(60)
    app.worker_main(["worker", "--pool", "solo", "--queues", "noops", "--loglevel", "warning"])


if __name__ == "__main__":
    main(sys.argv[1])
