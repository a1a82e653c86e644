"""A farm to measure: real servers and the product's processes, in a temporary home that is deleted afterwards.

The servers are durable, like those of `huafang up`. All programs end with this process, even when it is killed. A bench
may use an image store that takes no time: see `instant_store`.
"""

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import psycopg
from sqlalchemy import Engine, text

from common.accounts import keys, licences, tenants
from common.catalog.catalog import read
from common.config import Settings
from common.db import connect, migrate, transaction
from common.enums import Scope
from common.storage import Storage
from embedded.farm import variables
from embedded.instance import FIRST_PORT, LOOPBACK, PORT_COUNT, S3_ACCOUNT, can_bind
from embedded.processes import SIGNALS, Program, locked_command, write_programs
from embedded.servers import Servers, create_bucket

TIMEOUT_S = 60
T = TypeVar("T")


class Farm:
    def __init__(self, servers: Servers) -> None:
        self.site = servers.instance
        self._servers = servers
        self._programs = dict(servers.programs)
        self.settings = self.settings_of("huafang")

    def settings_of(self, database: str) -> Settings:
        """The settings of a farm with that database; the device is the stub."""
        s3 = f"http://{self.site.host}:{self.site.ports['s3']}"
        return Settings(
            home=self.site.home,
            database_url=self.site.database_url(self.site.host, database),  # type: ignore[arg-type]
            redis_url=f"redis://:{self.site.secrets['valkey']}@{self.site.host}:{self.site.ports['valkey']}/0",  # type: ignore[arg-type]
            s3_endpoint_url=s3,
            s3_public_url=s3,
            s3_bucket=database,  # each database is a farm, and no two farms share a bucket
            s3_access_key=S3_ACCOUNT,
            s3_secret_key=self.site.secrets["s3"],  # type: ignore[arg-type]
            key_pepper=self.site.secrets["pepper"],  # type: ignore[arg-type]
            device="stub",
        )

    def new_database(self, name: str) -> Settings:
        """A migrated database of that name, beside the farm's own."""
        with psycopg.connect(self.site.database_url(self.site.host, "postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        settings = self.settings_of(name)
        migrate(settings.database_url.get_secret_value())
        create_bucket(self.site, settings.s3_bucket)
        return settings

    def key(self, database: Engine, tenant: str = "bench") -> str:
        """The secret of a new key of this tenant, which is created if it does not exist."""
        with transaction(database) as connection:
            tenant_id = tenants.ensure_tenant(connection, tenant)
            key = keys.create_key(connection, tenant_id, "bench", [Scope.ADMIN], self.site.secrets["pepper"])
            for model in read(self.settings.catalog).models.values():
                licences.accept(connection, tenant_id, key.id, model.licence)
            return key.secret

    # Processes

    @contextmanager
    def program(self, *module: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run `python -m MODULE …` during the block, with its log in the home. It is killed 20 s after SIGTERM."""
        name = f"{module[0]}-{secrets.token_hex(3)}"
        program = Program(name, (sys.executable, "-m", *module), {"OMP_NUM_THREADS": "1", **environment})
        self._programs[name] = program
        write_programs(self.site.home, list(self._programs.values()))
        with open(self.site.log(name), "ab") as log:
            process = subprocess.Popen(
                locked_command(name),
                cwd=self.site.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.send_signal(SIGNALS["TERM"])
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    @contextmanager
    def worker(
        self, settings: Settings, device: str, *arguments: str, **changes: str
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A render worker that is ready."""
        name = f"bench-{secrets.token_hex(3)}"
        environment = {**variables(settings), **{f"HUAFANG_{key}": value for key, value in changes.items()}}
        command = ("worker", "render", "--device", device, "--name", name, *arguments)
        database = connect(settings, pool=1)
        with self.program(*command, **environment) as process:

            def is_ready() -> bool:
                with transaction(database) as connection:
                    found = connection.execute(READY, {"name": name}).first()
                return found is not None

            wait_until(is_ready, process)
            database.dispose()
            yield process

    @contextmanager
    def control(self, settings: Settings) -> Iterator[None]:
        with self.program("worker", "control", **variables(settings)):
            yield

    @contextmanager
    def api(self, settings: Settings, module: str = "api") -> Iterator[str]:
        """The address of an API that answers."""
        port = free_port()
        with self.program(module, "--port", str(port), **variables(settings)) as process:
            url = f"http://{LOOPBACK}:{port}"
            wait_until(lambda: answers(f"{url}/healthz"), process)
            yield url

    @contextmanager
    def instant_store(self) -> Iterator[str]:
        """The address of an image store that discards what is stored, and says that its bucket is this farm's."""
        port = free_port()
        with self.program("bench.harness.instant_store", str(port)) as process:
            url = f"http://{LOOPBACK}:{port}"
            wait_until(lambda: answers(url), process)
            if mark := Storage(self.settings).read_mark():
                Storage(self.settings.model_copy(update={"s3_endpoint_url": url})).write_mark(mark, replace=True)
            yield url


READY = text("SELECT FROM workers WHERE name = :name AND state = 'ready'")


@contextmanager
def farm() -> Iterator[Farm]:
    """The three servers, a bucket and a migrated database. The bench starts the processes."""
    home = Path(tempfile.mkdtemp(prefix="huafang-bench-"))
    try:
        with Servers(home / "farm", durable=True) as servers:
            made = Farm(servers)
            migrate(made.settings.database_url.get_secret_value())
            create_bucket(servers.instance, made.settings.s3_bucket)
            yield made
    finally:
        shutil.rmtree(home, ignore_errors=True)


def wait_until(
    condition: Callable[[], T], process: "subprocess.Popen[bytes] | None" = None, seconds: float = TIMEOUT_S
) -> T:
    """Wait until it is true, and return its value. Raises TimeoutError after that time, or when the process ends."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline or (process and process.poll() is not None):
            raise TimeoutError("A process of the bench did not do what it was to do in time.")
        time.sleep(0.05)
    return value


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port below the range of outgoing connections."""
    while not can_bind(LOOPBACK, port := FIRST_PORT + secrets.randbelow(PORT_COUNT)):
        pass
    return port
