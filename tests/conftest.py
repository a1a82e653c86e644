"""Fixtures of all tests: Postgres, Valkey and S3, started once per run by the first test that uses them.

A keeper process (`python -m embedded.servers`) owns the servers and ends with the run, even when the run is killed. All
workers of xdist share them; each test has its own database, bucket and emptied Redis database. Pub/sub channels are not
separated: a test may receive messages of another worker's test.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import Engine

from common.config import Settings
from common.db import connect
from common.sentences import Sentence
from embedded.farm import variables
from embedded.instance import S3_ACCOUNT, Instance, find_instance
from embedded.processes import exclusive
from embedded.servers import s3_client
from tests.support.databases import Databases, make_template

OwnSettings = Callable[[Path], AbstractContextManager[Settings]]

# The settings of this machine must not reach the tests.
for name in [name for name in os.environ if name.startswith("HUAFANG_") and not name.startswith("HUAFANG_TEST_")]:
    del os.environ[name]

# A shell starts background processes with SIGINT ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Run:
    """One run of the suite, in any number of processes."""

    root: Path
    pid: int  # the process whose end ends the run
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


def pytest_collection_finish() -> None:
    """No later garbage collection goes through the million objects of the imported modules: torch is one of them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is None or run.worker:
        return
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        keeper = psutil.Process(int((run.root / "keeper").read_text()))
        keeper.terminate()
        keeper.wait(60)
    shutil.rmtree(run.root, ignore_errors=True)


NOT_STARTED = Sentence("Another test process did not start the servers.", "servers_not_started", {})


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Instance:
    """Postgres, Valkey and S3 of this run, with a migrated database as the template of each test's."""
    run = pytestconfig.stash[RUN]
    with exclusive(
        run.root / "starting",
        300,
        NOT_STARTED,
    ):
        if not (run.root / "template").exists():
            start_keeper(run)
            make_template(instance_of(run))
            (run.root / "template").touch()
    return instance_of(run)


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


def instance_of(run: Run) -> Instance:
    instance = find_instance(run.root / "farm")
    assert instance
    return instance


@pytest.fixture(scope="session")
def databases(servers: Instance) -> Iterator[Databases]:
    databases = Databases(servers)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def s3_of_run(servers: Instance) -> Any:
    return s3_client(servers)


@pytest.fixture(scope="session")
def own_settings(servers: Instance, databases: Databases, s3_of_run: Any, pytestconfig: pytest.Config) -> OwnSettings:
    """Settings with a database and a bucket of their own during the block; one block at a time per process, for they
    share a Redis database.
    """

    @contextmanager
    def own(home: Path) -> Iterator[Settings]:
        name, worker = databases.take(), pytestconfig.stash[RUN].worker
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
        databases.give_back(name)

    return own


@pytest.fixture
def settings(own_settings: OwnSettings, tmp_path: Path) -> Iterator[Settings]:
    """This test's own migrated database, empty Redis database and empty bucket; the device is the stub."""
    with own_settings(tmp_path / "home") as settings:
        yield settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def farm_env(settings: Settings) -> dict[str, str]:
    """`settings` as HUAFANG_* variables, for another process."""
    return variables(settings)
