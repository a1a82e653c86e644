"""`python -m worker render` renders on one device; `… control` sweeps, expands batches and writes datasets.

`import` and `verify` see to the files of models, and end.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from argparse import Namespace
from typing import Any

from celery import Celery
from celery.signals import setup_logging, task_postrun, worker_shutting_down
from kombu.asynchronous import get_event_loop
from sqlalchemy import Engine as Database

from common import log
from common.broker import CONTROL_QUEUE, Broker, celery_app, render_queue
from common.catalog import catalog
from common.config import Settings
from common.db import check_revision, connect, current_revision, new_id, transaction
from common.errors import Error, Unavailable
from common.log import log_event
from common.storage import Storage
from worker import tasks
from worker.availability import Availability
from worker.control.batch_expander import Expander
from worker.control.sweep import Sweep

WAIT_FOR_DATABASE_S = 60
TASK_ENDS_S = 0.01
GIVEN = ("device", "models", "worker_name")  # on the command line, in place of settings
EXPORT_CONNECTIONS = 12  # to the image store: pictures that come, and parts of a shard that go


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker")
    kinds = parser.add_subparsers(dest="kind", required=True)
    render_parser = kinds.add_parser("render", help="render on one device")
    render_parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps or stub")
    render_parser.add_argument("--models", help="comma-separated names of the catalogue; default: all that fit here")
    render_parser.add_argument("--name", dest="worker_name", help="what people see; default: host and device")
    kinds.add_parser("control", help="sweep, expand batches, write datasets; needs no device")
    import_parser = kinds.add_parser("import", help="bring a model to this host")
    import_parser.add_argument("source")
    for option in ("--name", "--revision", "--licence", "--like"):
        import_parser.add_argument(option)
    for option in ("--no-safety-checker", "--dry-run"):
        import_parser.add_argument(option, action="store_true")
    kinds.add_parser("verify", help="see whether models would be refused").add_argument("names", nargs="+")
    asked = parser.parse_args(arguments)
    settings = Settings(**{key: value for key, value in vars(asked).items() if key in GIVEN and value is not None})
    log.set_up(settings.log_level)
    signal.signal(signal.SIGTERM, leave)  # until Celery takes it over
    kind = {"render": render, "control": control, "import": see_to_files, "verify": see_to_files}[asked.kind]
    try:
        return kind(settings, asked)
    except Error as error:
        print(error.message, file=sys.stderr)
        return 1


def render(settings: Settings, asked: Namespace) -> int:
    from worker.render.worker import RenderWorker  # here, for a control worker has none of what it needs

    worker = RenderWorker(settings, catalog.read(settings.catalog, settings.model_store))
    wait_for_services(worker.database, worker.messages)
    app = celery_app(settings)
    tasks.add_render(app, worker.engine, worker.messages)
    worker_shutting_down.connect(lambda **_: worker.engine.drain(), weak=False)
    try:
        worker.start()
        return consume(app, f"render-{worker.id}", [render_queue(name) for name in worker.models])
    finally:
        signal.signal(signal.SIGTERM, lambda *_: worker.engine.drain())  # a second one hurries
        if not worker.stop():  # a model that is being loaded cannot be interrupted: leave without it
            logging.shutdown()
            os._exit(0)


def see_to_files(settings: Settings, asked: Namespace) -> int:
    from worker.models import cli  # here, for the same reason

    return cli.main(settings, asked)


def leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever tidies up now must not be left halfway
    sys.exit(0)


def control(settings: Settings, asked: Namespace) -> int:
    from worker.datasets.exporter import Exporter  # here, for a render worker has none of what it needs

    database, messages = connect(settings, pool=5), Broker(settings)
    wait_for_services(database, messages)
    storage, stopping = Storage(settings, attempts=1), threading.Event()
    known = catalog.read(settings.catalog, settings.model_store)
    sweep = Sweep(settings, database, messages, storage)
    app = celery_app(settings)
    tasks.add_sweep(app, sweep)
    tasks.add_advance(app, Expander(database, storage, messages, known), messages)
    exporter = Exporter(database, Storage(settings, connections=EXPORT_CONNECTIONS), known)
    tasks.add_export(app, exporter, messages)
    worker_shutting_down.connect(lambda **_: exporter.leave(), weak=False)
    thread = threading.Thread(target=sweep.run, args=(stopping,), name="sweep", daemon=True)
    if settings.sweep:
        thread.start()
    log_event("control_started", sweeps=settings.sweep)
    try:
        return consume(app, f"control-{new_id()}", [CONTROL_QUEUE], threads=2)  # a dataset, and a batch beside it
    finally:
        stopping.set()
        if settings.sweep:
            thread.join(10)


def wait_for_services(database: Database, messages: Broker) -> None:
    """Wait for Postgres. Raises Unavailable if it does not come, or if it or Redis is not as the farm needs it."""
    deadline, outage = time.monotonic() + WAIT_FOR_DATABASE_S, Availability("database_away", "database_back")

    def revision() -> str | None:
        with transaction(database) as connection:
            return current_revision(connection)

    check_revision(outage.insist(revision, unless=lambda: time.monotonic() > deadline))
    policy = messages.eviction_policy()
    if policy not in (None, "noeviction"):  # None: away; the farm gets along without it
        raise Unavailable(f"Redis' maxmemory-policy is {policy}, which loses messages; set it to noeviction.")


def consume(app: Celery, name: str, queues: list[str], threads: int = 1) -> int:
    """Run Celery until it is told to stop. Threads, for CUDA and torch do not survive a fork."""
    setup_logging.connect(lambda **_: None, weak=False)  # `telemetry` has done it
    # It tells of a lost Redis with a traceback every few seconds; `Messages` does so in one line.
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*superuser privileges")  # JSON only: nothing that it warns of
    task_postrun.connect(look_for_the_next, weak=False)
    # True only spares us its warning at each lost connection: our messages are acknowledged early, none is cancelled.
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
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


def look_for_the_next(**_: object) -> None:
    """A task has ended. Celery takes one message at a time, and would notice at its next tick: up to a second later."""
    hub = get_event_loop()
    if hub:  # a moment later, when the task counts as ended
        hub.call_soon(hub.call_later, TASK_ENDS_S, lambda: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
