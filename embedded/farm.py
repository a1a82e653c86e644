"""The local farm: `up`, `down` and `status` of servers, API, control worker and render workers under one supervisor.

`up` is a list of steps that find their work done or do it, so a second one finds the first, and one that follows a
crash repairs what is missing. The data and the secrets stay in the farm's home when it is down.
"""

import shlex
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from pydantic import SecretStr

from common.catalog import catalog
from common.config import Settings
from common.errors import Conflict, NotFound, Unavailable
from embedded import supervisor
from embedded.instance import LOOPBACK, Site, find_site, home_of, make_home, prepare_site
from embedded.processes import Program, only_one, stop_left_over, write_programs
from embedded.servers import ANSWERS, create_bucket, server_programs, wait_for_server
from embedded.supervisor import Process

PYTHON = (sys.executable, "-P", "-m")
NVIDIA = Path("/dev/nvidiactl")  # there where the driver is; torch would take seconds to say so
READY_S = 90
PATIENCE_S = 10
DRAIN_S = 40  # a little more than a worker takes to finish what it holds
# torch's threads spin while they wait; on cores that others use too that makes rendering many times slower.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Farm:
    url: str
    home: str
    listen: str
    environment: dict[str, str]  # with which a process of this machine reaches the farm
    join: list[str]  # lines for the shell of another machine, before `./huafang serve worker`; none on loopback
    processes: list[Process]


def up(
    settings: Settings,
    *,
    listen: str | None = None,
    device: str | None = None,
    workers: int = 1,
    clients: Sequence[Program] | None = None,
    say: Say = lambda line: None,
) -> Farm:
    """The farm of this home, running: found, repaired or started. A failed start leaves nothing behind."""
    home = home_of(settings)
    make_home(home)
    with alone(home):
        site = find_running(home)
        if site is not None:
            check_same(site, listen, device, workers)
            return bring_up(site, settings, say)
        stop_all(home)
        try:
            site = prepare_site(home, listen or LOOPBACK, device, workers)
            start_supervisor(site, client_programs(site, settings) if clients is None else list(clients), say)
            return bring_up(site, settings, say)
        except BaseException:
            stop_all(home)
            raise


def down(settings: Settings) -> None:
    """Stop everything, also what a killed supervisor left: clients first, then servers."""
    home = home_of(settings)
    if find_site(home) is not None:
        with alone(home):
            stop_all(home)


def status(settings: Settings) -> Farm | None:
    """What runs, or None."""
    site = find_running(home_of(settings))
    return None if site is None else describe(site, settings)


def environment(settings: Settings) -> dict[str, str]:
    """The variables with which any process of this machine reaches this farm."""
    site = find_site(home_of(settings))
    if site is None:
        raise NotFound(f"There is no local farm in {settings.home}; start one with `./huafang up`.")
    return site.environment(settings)


# The steps


def start_supervisor(site: Site, clients: list[Program], say: Say) -> None:
    say("starting Postgres, Valkey and S3")
    servers = server_programs(site)
    write_programs(site.home, [*servers, *clients])
    supervisor.start(site.home, {"servers": servers, "clients": clients})


def bring_up(site: Site, settings: Settings, say: Say) -> Farm:
    from common.db import migrate

    supervisor.start_group(site.home, "servers")
    for name in ANSWERS:
        wait_for_server(site, name, patience(site, name))
    say("migrating the database")
    migrate(site.database_url(site.host))
    create_bucket(site, settings.s3_bucket)
    say("starting the API and the workers")
    supervisor.start_group(site.home, "clients")
    wait_for_api(site)
    return describe(site, settings)


def stop_all(home: Path) -> None:
    if supervisor.is_running(home):
        supervisor.stop(home)
    stop_left_over(home)


def client_programs(site: Site, settings: Settings) -> list[Program]:
    default = {"HUAFANG_DEFAULT_MODEL": default_model(site, settings)}
    shared = {**variables(settings), **default, **site.environment(settings), **without_proxy(site)}
    of_worker = {**shared, **PATIENT, **({"HUAFANG_DEVICE": site.device} if site.device else {})}
    names = [f"worker-{number}" for number in range(1, site.workers + 1)]
    address = ("--host", site.listen, "--port", str(site.ports["api"]))
    return [
        Program("api", (*PYTHON, "api", *address), shared, stop_s=DRAIN_S),
        Program("control", (*PYTHON, "worker", "control"), shared, stop_s=DRAIN_S),
        *(Program(name, (*PYTHON, "worker", "render", "--name", name), of_worker, stop_s=DRAIN_S) for name in names),
    ]


def default_model(site: Site, settings: Settings) -> str:
    """What a request that names no model gets: the catalogue has one for machines with a GPU, one for all others."""
    known, device = catalog.read(settings.catalog, settings.model_store), site.device or settings.device
    has_gpu = device.startswith(("cuda", "mps")) or (device == "auto" and NVIDIA.exists())
    return settings.default_model or (known.default_gpu if has_gpu else known.default)


def wait_for_api(site: Site) -> None:
    has_failed, deadline = patience(site, "api"), time.monotonic() + READY_S
    while not is_ready(site.url):
        if time.monotonic() > deadline or has_failed():
            raise Unavailable(f"The API did not become ready; see {site.log('api')}.")
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def patience(site: Site, name: str) -> Callable[[], bool]:
    """Whether a process has been failing for so long that waiting is in vain."""
    deadline = time.monotonic() + PATIENCE_S

    def has_failed() -> bool:
        if time.monotonic() < deadline:
            return False
        states = {process.name: process.state for process in supervisor.processes(site.home)}
        return states.get(name) in ("backoff", "fatal")

    return has_failed


# What is asked of a farm


def alone(home: Path) -> AbstractContextManager[None]:
    return only_one(home / "run" / "farm.lock", 240, f"Another `up` or `down` of {home} is still at work.")


def find_running(home: Path) -> Site | None:
    return find_site(home) if supervisor.is_running(home) and supervisor.answers(home) else None


def check_same(site: Site, listen: str | None, device: str | None, workers: int) -> None:
    """A running farm keeps its shape; what was not asked for differs from nothing."""
    differs = (listen or site.listen, device or site.device) != (site.listen, site.device)
    if differs or workers not in (1, site.workers):
        raise Conflict("The farm is already up with other options; stop it with `./huafang down` first.")


def describe(site: Site, settings: Settings) -> Farm:
    services = site.services(settings, site.public_host)
    return Farm(
        url=site.url,
        home=str(site.home),
        listen=site.listen,
        environment=site.environment(settings),
        join=[] if site.listen == LOOPBACK else [f"export {k}={shlex.quote(v)}" for k, v in services.items()],
        processes=supervisor.processes(site.home),
    )


def variables(settings: Settings) -> dict[str, str]:
    """The settings that were given, as the variables that give them to another process."""
    return {f"HUAFANG_{name.upper()}": text(getattr(settings, name)) for name in settings.model_fields_set}


def text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    return "" if value is None else str(value)


def without_proxy(site: Site) -> dict[str, str]:
    """A machine's proxy cannot reach the farm on it."""
    known = urllib.request.getproxies_environment().get("no", "")
    hosts = ",".join(filter(None, [known, "localhost", site.host, site.public_host]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
