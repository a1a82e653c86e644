"""`python -m worker render` renders on one device; `… control` sweeps, expands batches and writes datasets.

`import` brings a model to this host, `verify` checks models, `prove` compares one with diffusers, `devices` says what a
worker here renders on; all then end.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from uuid import NAMESPACE_OID, uuid5

from celery.signals import worker_shutting_down
from sqlalchemy import Engine as Database

from common import log
from common.accounts.farm import Farm
from common.broker import CONTROL_QUEUE, Broker, celery_app, render_queue
from common.catalog import catalog
from common.config import Settings
from common.db import SchemaVersion, check_version, connect, new_id, read_version, transaction
from common.errors import Error, Unavailable, WrongFarm
from common.log import log_event
from common.queue import workers
from common.sentences import printable
from worker import sentence, tasks
from worker.availability import Availability
from worker.consumer import consume
from worker.devices.gpus import DeviceUnusable
from worker.devices.processes import end_with, name_of, serve_each

ALL_GPUS = "cuda:all"
WAIT_FOR_DATABASE_S = 60
SETTINGS = ("device", "models", "worker_name")  # that the command line can set
CONTROL_THREADS = 2  # of batches; datasets have their own


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker")
    kinds = parser.add_subparsers(dest="kind", required=True)
    render_parser = kinds.add_parser("render", help="render on one device")
    render_parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, cuda:all, mps or stub")
    render_parser.add_argument("--models", help="comma-separated names of the catalogue; default: all that fit here")
    render_parser.add_argument("--name", dest="worker_name", help="the name that is shown; default: host and device")
    render_parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # of `worker.devices.processes`
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
    kinds.add_parser("devices", help="what a worker renders on here").add_argument("--device")
    parsed = parser.parse_args(arguments)
    settings = Settings(**{key: value for key, value in vars(parsed).items() if key in SETTINGS and value is not None})
    log.set_up(settings.log_level)
    signal.signal(signal.SIGTERM, exit_once)  # until Celery handles it
    kind = {"render": render, "control": control, "devices": devices}.get(parsed.kind, model_files)
    try:
        return kind(settings, parsed)
    except Error as error:
        print(printable(error.message), file=sys.stderr)
        return 1


def render(settings: Settings, parsed: Namespace) -> int:
    from worker.render.worker import RenderWorker  # here: a control worker does not have its libraries

    if parsed.parent:
        end_with(parsed.parent)
    try:
        if settings.device == ALL_GPUS:
            return render_on_all_gpus(settings)
        worker = RenderWorker(settings, catalog.read(settings.catalog, settings.model_store))
    except DeviceUnusable as error:
        report_unusable(settings, error.message)
        raise
    wait_for_services(worker.database, worker.broker)
    refuse_another_farm(worker.farm)
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


def render_on_all_gpus(settings: Settings) -> int:
    """A process for each GPU. Torch counts them in a process of its own, so that this one stays small."""
    command = [sys.executable, "-P", "-m", "worker", "devices", "--device", "cuda"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout or "{}")
    if "cuda" not in found:
        raise DeviceUnusable(found.get("error", sentence("gpus_uncounted")))
    return serve_each(found["cuda"], settings.worker_name, ["--models", settings.models] if settings.models else [])


def devices(settings: Settings, parsed: Namespace) -> int:
    """Print as JSON what a worker with these settings renders on, or why it does not start."""
    from worker.pipelines import registry  # imports torch

    try:
        print(json.dumps(registry.survey(settings.device)))
    except DeviceUnusable as error:
        print(json.dumps({"error": error.message, "status": error.status}))
        return 1
    return 0


def report_unusable(settings: Settings, reason: str) -> None:
    """Tell the farm, if it is there, why this worker does not start."""
    log_event("device_unusable", device=settings.device, reason=reason)
    name = name_of(settings.worker_name, settings.device)
    worker_id = uuid5(NAMESPACE_OID, name)  # one row, however often its supervisor starts it again
    database = connect(settings, pool=1)
    with suppress(Unavailable), transaction(database) as connection:
        check_version(read_version(connection))
        workers.heartbeat(connection, workers.Worker(worker_id, name, {"device": settings.device}, []), ready=False)
        workers.stop(connection, worker_id, reason)


def control(settings: Settings, parsed: Namespace) -> int:
    from worker.control.worker import ControlWorker  # here: a render worker does not have its libraries

    worker = ControlWorker(settings, catalog.read(settings.catalog, settings.model_store))
    wait_for_services(worker.database, worker.broker)
    refuse_another_farm(worker.farm)
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


def refuse_another_farm(farm: Farm) -> None:
    """Raises WrongFarm. While the image store is away that is not known, and nothing is claimed until it is."""
    try:
        farm.compare()
    except WrongFarm:
        raise
    except Unavailable as error:
        log_event("storage_away", reason=error.message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
