"""The house of every test: real servers, started once per run when the first test asks for them.

A keeper (`python -m embedded.servers`) owns them and watches the run: they end with it, even when it is killed. All
workers of xdist share them; each test has a database, a bucket and an emptied Redis database of its own. Pub/sub
channels are Redis-wide: what one test publishes, a test of another worker could hear.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import Engine

from common.config import Settings
from common.db import connect, migrate
from embedded.farm import variables
from embedded.instance import S3_ACCOUNT, Site, find_site
from embedded.processes import only_one
from embedded.servers import s3_client

TEMPLATE = "template_of_tests"

OwnSettings = Callable[[Path], AbstractContextManager[Settings]]

# What this machine says about a farm must not reach the tests.
for name in [name for name in os.environ if name.startswith("HUAFANG_") and not name.startswith("HUAFANG_TEST_")]:
    del os.environ[name]

# What a shell starts in the background inherits an ignored Ctrl-C; the programs that tests start need theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Run:
    """One run of the suite, in however many processes."""

    root: Path
    pid: int  # the process whose end is the end of the run
    worker: int = 0  # 1, 2, … under xdist


RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is None:
        config.stash[RUN] = Run(Path(tempfile.mkdtemp(prefix="huafang-tests-")), os.getpid())
    else:
        worker = int(given["workerid"].removeprefix("gw")) + 1
        config.stash[RUN] = Run(Path(given["run_root"]), given["run_pid"], worker)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    run = node.config.stash[RUN]
    node.workerinput |= {"run_root": str(run.root), "run_pid": run.pid}


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is None or run.worker:
        return
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        keeper = psutil.Process(int((run.root / "keeper").read_text()))
        keeper.terminate()
        keeper.wait(60)
    shutil.rmtree(run.root, ignore_errors=True)


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Site:
    """Postgres, Valkey and S3 of this run, and in Postgres a migrated database to copy."""
    run = pytestconfig.stash[RUN]
    with only_one(run.root / "starting", 120, "Another test process did not get the servers started."):
        if not (run.root / "template").exists():
            start_keeper(run)
            make_template(site_of(run))
            (run.root / "template").touch()
    return site_of(run)


def start_keeper(run: Run) -> None:
    with open(run.root / "keeper.log", "wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "embedded.servers", run.root / "farm", str(run.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    (run.root / "keeper").write_text(str(keeper.pid))
    assert keeper.stdout
    assert keeper.stdout.readline() == "ready\n", (run.root / "keeper.log").read_text()


def site_of(run: Run) -> Site:
    site = find_site(run.root / "farm")
    assert site
    return site


def make_template(site: Site) -> None:
    execute(site, f"CREATE DATABASE {TEMPLATE}")
    migrate(site.database_url(site.host, TEMPLATE))


def execute(site: Site, statement: str) -> None:
    with psycopg.connect(site.database_url(site.host, "postgres"), autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.fixture(scope="session")
def s3_of_run(servers: Site) -> Any:
    return s3_client(servers)


@pytest.fixture(scope="session")
def own_settings(servers: Site, s3_of_run: Any, pytestconfig: pytest.Config) -> OwnSettings:
    """A farm of one's own while the block lasts; one at a time in a process, for they share a Redis database."""

    @contextmanager
    def own(home: Path) -> Iterator[Settings]:
        name, worker = f"test-{uuid.uuid4().hex}", pytestconfig.stash[RUN].worker
        execute(servers, f'CREATE DATABASE "{name}" TEMPLATE {TEMPLATE} STRATEGY FILE_COPY')
        redis_url = f"redis://:{servers.secrets['valkey']}@{servers.host}:{servers.ports['valkey']}/{worker}"
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        s3_of_run.create_bucket(Bucket=name)
        s3_url = f"http://{servers.host}:{servers.ports['s3']}"
        yield Settings(
            home=home,
            database_url=servers.database_url(servers.host, name),
            redis_url=redis_url,
            s3_endpoint_url=s3_url,
            s3_public_url=s3_url,
            s3_bucket=name,
            s3_access_key=S3_ACCOUNT,
            s3_secret_key=servers.secrets["s3"],
            key_pepper="the pepper of the tests",
            device="stub",
        )
        execute(servers, f'DROP DATABASE "{name}" WITH (FORCE)')

    return own


@pytest.fixture
def settings(own_settings: OwnSettings, tmp_path: Path) -> Iterator[Settings]:
    """A farm of this test's own: a fresh database, an empty Redis database, an empty bucket, the stub for a device."""
    with own_settings(tmp_path / "home") as settings:
        yield settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def farm_env(settings: Settings) -> dict[str, str]:
    """The HUAFANG_* variables that give `settings` to another process."""
    return variables(settings)
