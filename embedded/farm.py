"""The local farm: `up`, `down` and `status` of servers, API, control worker and render workers under one supervisor.

Every step of `up` is idempotent: a second `up` changes nothing, and one after a crash repairs what is missing. The
data and the secrets stay in the farm's home while it is down.
"""

import shlex
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

from pydantic import SecretStr

from common.catalog import catalog
from common.config import Settings
from common.disks import full_disks
from common.errors import Conflict, NotFound, Unavailable
from embedded import sentence, supervisor
from embedded.instance import LOOPBACK, Instance, find_instance, home_path, make_home, prepare_instance
from embedded.processes import Program, StartDeadline, exclusive, stop_orphans, write_programs
from embedded.servers import PROBES, create_bucket, server_programs, wait_for_server
from embedded.supervisor import Process

PYTHON = (sys.executable, "-P", "-m")
NVIDIA_DEVICE = Path("/dev/nvidiactl")  # exists where the driver is loaded; importing torch would take seconds
READY_TIMEOUT_S = 90  # without progress
FAILING_S = 10  # a process that still restarts after so long does not come up
STOP_TIMEOUT_S = 40  # longer than a worker takes to drain
# By default torch's threads spin while they wait, which slows every process on shared cores many times.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Farm:
    url: str
    home: str
    listen: str
    environment: dict[str, str]  # HUAFANG_* variables for a process of this machine
    join: list[str]  # shell lines for another machine, before `./huafang serve worker`; empty on loopback
    processes: list[Process]
    alerts: list[str]  # a sentence for each full disk


def up(
    settings: Settings,
    *,
    listen: str | None = None,
    device: str | None = None,
    workers: int = 1,
    clients: Sequence[Program] | None = None,
    on_progress: OnProgress = lambda line: None,
) -> Farm:
    """Start or repair the farm of this home and return it. A start that fails stops every process again.

    `clients` replaces the API and the workers. Raises Conflict for a running farm with other options, Invalid for an
    address of another machine, and Unavailable for whatever does not start.
    """
    home = home_path(settings)
    make_home(home)
    with farm_lock(home):
        instance = find_running(home)
        if instance is not None:
            check_options(instance, listen, device, workers)
            return bring_up(instance, settings, on_progress)
        stop_all(home)
        try:
            instance = prepare_instance(home, listen or LOOPBACK, device, workers)
            programs = client_programs(instance, settings) if clients is None else list(clients)
            start_supervisor(instance, programs, on_progress)
            return bring_up(instance, settings, on_progress)
        except BaseException:
            stop_all(home)
            raise


def down(settings: Settings) -> None:
    """Stop the clients, then the servers, then what a killed supervisor left running."""
    home = home_path(settings)
    if find_instance(home) is not None:
        with farm_lock(home):
            stop_all(home)


def status(settings: Settings) -> Farm | None:
    """The farm, or None where it is down."""
    instance = find_running(home_path(settings))
    return None if instance is None else describe(instance, settings)


def environment(settings: Settings) -> dict[str, str]:
    """The variables for any process of this machine. Raises NotFound where this home has never had a farm."""
    instance = find_instance(home_path(settings))
    if instance is None:
        raise NotFound(sentence("no_farm", home=settings.home))
    return instance.environment(settings)


# The steps


def start_supervisor(instance: Instance, clients: list[Program], on_progress: OnProgress) -> None:
    supervisor.check_limits()
    on_progress("starting Postgres, Valkey and S3")
    servers = server_programs(instance)
    write_programs(instance.home, [*servers, *clients])
    supervisor.start(instance.home, {"servers": servers, "clients": clients})


def bring_up(instance: Instance, settings: Settings, on_progress: OnProgress) -> Farm:
    from common.db import migrate

    supervisor.start_group(instance.home, "servers")
    for name in PROBES:
        wait_for_server(instance, name, failure_check(instance, name))
    on_progress("migrating the database")
    if note := migrate(instance.database_url(instance.host)).note:
        on_progress(note)
    create_bucket(instance, settings.s3_bucket)
    on_progress("starting the API and the workers")
    supervisor.start_group(instance.home, "clients")
    wait_for_api(instance)
    return describe(instance, settings)


def stop_all(home: Path) -> None:
    if supervisor.is_running(home):
        supervisor.stop(home)
    stop_orphans(home)


def client_programs(instance: Instance, settings: Settings) -> list[Program]:
    default = {"HUAFANG_DEFAULT_MODEL": default_model(instance, settings)}
    shared = {**variables(settings), **default, **instance.environment(settings), **without_proxy(instance)}
    of_worker = {**shared, **PASSIVE_THREADS, **({"HUAFANG_DEVICE": instance.device} if instance.device else {})}
    names = [f"worker-{number}" for number in range(1, instance.workers + 1)]
    address = ("--host", instance.listen, "--port", str(instance.ports["api"]))
    return [
        Program("api", (*PYTHON, "api", *address), shared, stop_s=STOP_TIMEOUT_S),
        Program("control", (*PYTHON, "worker", "control"), shared, stop_s=STOP_TIMEOUT_S),
        *(
            Program(name, (*PYTHON, "worker", "render", "--name", name), of_worker, stop_s=STOP_TIMEOUT_S)
            for name in names
        ),
    ]


def default_model(instance: Instance, settings: Settings) -> str:
    """The model of a request that names none: the catalogue's default for machines with, or without, a GPU."""
    known, device = catalog.read(settings.catalog, settings.model_store), instance.device or settings.device
    has_gpu = device.startswith(("cuda", "mps")) or (device == "auto" and NVIDIA_DEVICE.exists())
    return settings.default_model or (known.default_gpu if has_gpu else known.default)


def wait_for_api(instance: Instance) -> None:
    has_failed, deadline = failure_check(instance, "api"), StartDeadline(instance.home, "api", READY_TIMEOUT_S)
    while (status := ready_status(instance.url)) != HTTPStatus.OK:
        if deadline.has_passed(has_answered=status is not None) or has_failed():
            raise Unavailable(sentence("api_not_ready", log=instance.failure_log("api")))
        time.sleep(0.05)


def ready_status(url: str) -> int | None:
    """The status of the API's answer; None where it does not answer."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/readyz", timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return None


def failure_check(instance: Instance, name: str) -> Callable[[], bool]:
    """A check whether this process still fails to start after FAILING_S from now."""
    deadline = time.monotonic() + FAILING_S

    def has_failed() -> bool:
        if time.monotonic() < deadline:
            return False
        states = {process.name: process.state for process in supervisor.processes(instance.home)}
        return states.get(name) in ("backoff", "fatal")

    return has_failed


# Locks, checks and values


def farm_lock(home: Path) -> AbstractContextManager[None]:
    return exclusive(home / "run" / "farm.lock", 240, sentence("farm_locked", home=home))


def find_running(home: Path) -> Instance | None:
    return find_instance(home) if supervisor.is_running(home) and supervisor.answers(home) else None


def check_options(instance: Instance, listen: str | None, device: str | None, workers: int) -> None:
    """Raises Conflict for a running farm with other options; an option that was not given always matches."""
    differs = (listen or instance.listen, device or instance.device) != (instance.listen, instance.device)
    if differs or workers not in (1, instance.workers):
        raise Conflict(sentence("options_differ"))


def describe(instance: Instance, settings: Settings) -> Farm:
    services = instance.services(settings, instance.public_host)
    return Farm(
        url=instance.url,
        home=str(instance.home),
        listen=instance.listen,
        environment=instance.environment(settings),
        join=[] if instance.listen == LOOPBACK else [f"export {k}={shlex.quote(v)}" for k, v in services.items()],
        processes=supervisor.processes(instance.home),
        alerts=disk_alerts(instance.home),
    )


def disk_alerts(home: Path) -> list[str]:
    return [
        sentence("data_disk_full", folder=d.folder) if d.has_data else sentence("log_disk_full", folder=d.folder)
        for d in full_disks(home)
    ]


def variables(settings: Settings) -> dict[str, str]:
    """The settings that differ from the defaults of the code, as variables for another process."""
    return {f"HUAFANG_{name.upper()}": to_text(getattr(settings, name)) for name in settings.model_fields_set}


def to_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    return "" if value is None else str(value)


def without_proxy(instance: Instance) -> dict[str, str]:
    """The variables that keep requests to this farm away from an HTTP proxy, which could not reach it."""
    known = urllib.request.getproxies_environment().get("no", "")
    hosts = ",".join(filter(None, [known, "localhost", instance.host, instance.public_host]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
