"""`python -m worker render` renders on one device; `… control` sweeps, expands batches and writes datasets.

`import` brings a model to this host, `verify` checks models, `prove` compares one with diffusers; all then end.
"""

import argparse
import logging
import os
import signal
import sys
import time
from argparse import Namespace

from celery.signals import worker_shutting_down
from sqlalchemy import Engine as Database

from common import log
from common.broker import CONTROL_QUEUE, Broker, celery_app, render_queue
from common.catalog import catalog
from common.config import Settings
from common.db import SchemaVersion, check_version, new_id, read_version, transaction
from common.errors import Error, Unavailable
from common.sentences import printable
from worker import sentence, tasks
from worker.availability import Availability
from worker.consumer import consume

WAIT_FOR_DATABASE_S = 60
SETTINGS = ("device", "models", "worker_name")  # that the command line can set
CONTROL_THREADS = 2  # a dataset, and a batch beside it


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker")
    kinds = parser.add_subparsers(dest="kind", required=True)
    render_parser = kinds.add_parser("render", help="render on one device")
    render_parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps or stub")
    render_parser.add_argument("--models", help="comma-separated names of the catalogue; default: all that fit here")
    render_parser.add_argument("--name", dest="worker_name", help="the name that is shown; default: host and device")
    kinds.add_parser("control", help="sweep, expand batches, write datasets; needs no device")
    import_parser = kinds.add_parser("import", help="bring a model to this host")
    import_parser.add_argument("source")
    for option in ("--name", "--revision", "--licence", "--like", "--safety-checker"):
        import_parser.add_argument(option)
    for option in ("--no-safety-checker", "--dry-run"):
        import_parser.add_argument(option, action="store_true")
    verify = kinds.add_parser("verify", help="check whether models would be refused")
    verify.add_argument("names", nargs="+")
    verify.add_argument("--files-only", action="store_true", help="do not load them")
    prove = kinds.add_parser("prove", help="compare a model with plain diffusers, and measure it")
    prove.add_argument("name")
    prove.add_argument("--steps", type=int)
    parsed = parser.parse_args(arguments)
    settings = Settings(**{key: value for key, value in vars(parsed).items() if key in SETTINGS and value is not None})
    log.set_up(settings.log_level)
    signal.signal(signal.SIGTERM, exit_once)  # until Celery handles it
    kind = {"render": render, "control": control}.get(parsed.kind, model_files)
    try:
        return kind(settings, parsed)
    except Error as error:
        print(printable(error.message), file=sys.stderr)
        return 1


def render(settings: Settings, parsed: Namespace) -> int:
    from worker.render.worker import RenderWorker  # here: a control worker does not have its libraries

    worker = RenderWorker(settings, catalog.read(settings.catalog, settings.model_store))
    wait_for_services(worker.database, worker.broker)
    app = celery_app(settings)
    tasks.add_render(app, worker.loop, worker.broker)
    worker_shutting_down.connect(lambda **_: worker.loop.drain(), weak=False)
    try:
        worker.start()
        return consume(app, f"render-{worker.id}", [render_queue(name) for name in worker.model_names])
    finally:
        signal.signal(signal.SIGTERM, lambda *_: worker.loop.drain())  # a second one ends the drain
        if not worker.stop():  # a model is being loaded, which cannot be stopped
            logging.shutdown()
            os._exit(0)


def control(settings: Settings, parsed: Namespace) -> int:
    from worker.control.worker import ControlWorker  # here: a render worker does not have its libraries

    worker = ControlWorker(settings, catalog.read(settings.catalog, settings.model_store))
    wait_for_services(worker.database, worker.broker)
    app = celery_app(settings)
    tasks.add_sweep(app, worker.sweep)
    tasks.add_advance(app, worker.expander, worker.broker)
    tasks.add_export(app, worker.exporter, worker.broker)
    worker_shutting_down.connect(lambda **_: worker.leave(), weak=False)
    worker.start()
    try:
        return consume(app, f"control-{new_id()}", [CONTROL_QUEUE], CONTROL_THREADS)
    finally:
        worker.stop()


def model_files(settings: Settings, parsed: Namespace) -> int:
    from worker.models import cli  # here, for the same reason

    return cli.main(settings, parsed)


def exit_once(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt what is cleaned up now
    sys.exit(0)


def wait_for_services(database: Database, broker: Broker) -> None:
    """Wait for Postgres. Raises Unavailable if it does not answer in time, or if it or Redis is unfit for the farm."""
    deadline, availability = time.monotonic() + WAIT_FOR_DATABASE_S, Availability("database_away", "database_back")

    def version() -> SchemaVersion:
        with transaction(database) as connection:
            return read_version(connection)

    check_version(availability.retry(version, give_up=lambda: time.monotonic() > deadline))
    policy = broker.eviction_policy()
    if policy not in (None, "noeviction"):  # None: Redis is away, and the farm works without it
        raise Unavailable(sentence("redis_may_evict", policy=policy))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
