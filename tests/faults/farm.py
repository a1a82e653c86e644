"""The farm in the storm: real servers behind a bad network, the product's processes, and a keeper that restarts them.

Everything the storm must know to judge is here too: a witness inside the database (a trigger notes every change of an
image or a job), and which processes died or froze when.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import redis
from psycopg.rows import dict_row
from sqlalchemy import text

from common.accounts import licences
from common.accounts.keys import create_key
from common.accounts.tenants import ensure_tenant
from common.catalog.catalog import read
from common.config import SHIPPED_CATALOG, Settings
from common.db import connect, migrate, transaction
from common.enums import Scope
from embedded.instance import FIRST_PORT, PORT_COUNT, S3_ACCOUNT, can_bind
from embedded.processes import wait_until_ended, write_programs
from embedded.servers import Servers, create_bucket, s3_client
from tests.faults.proxy import Network, Proxy

HOME = Path(__file__).resolve().parents[2]
STUBS, APIS, CONTROLS = 3, 2, 2
BUCKET = "storm"
TENANTS = ("红", "黄", "蓝")
CONNECTIONS = 100  # that Postgres allows: few enough to be used up
OWN_STORE_WORKER, OWN_STORE = "stub-1", "s3-own"  # a worker with a way of its own to S3, and the name of that way
START_S = 180
RESTART_S = 0.2


@dataclass(frozen=True)
class Rhythm:
    """Short leases make a short storm."""

    lease_s: float = 3.0
    beat_s: float = 1.0
    sweep_s: float = 1.0
    drain_s: float = 4.0
    trial_s: float = 1.0
    cannot_store_s: float = 1.5


@dataclass(frozen=True)
class Harm:
    """What was done to a process: it was dead or frozen from then on, until then."""

    name: str
    kind: str
    began: float
    ended: float


class Child:
    """One process of the product, which the keeper keeps alive."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.arguments = arguments
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def send(self, number: int) -> bool:
        """Send a signal. False when the process has ended."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True


class Farm:
    def __init__(self, home: Path, rhythm: Rhythm, sabotage: str | None = None) -> None:
        self.home = home
        self.rhythm = rhythm
        self.sabotage = sabotage
        self.traps = home / "traps"
        (self.traps / "sprung").mkdir(parents=True)
        (home / "processes").mkdir()
        self.servers = Servers(home / "servers")
        self.site = self.servers.instance
        self._harden_postgres()
        ports = {name: self.site.ports[name] for name in ("postgres", "valkey", "s3")}
        self.network = Network({**ports, OWN_STORE: self.site.ports["s3"]})
        self.api_ports = free_ports(APIS)
        self.urls = [f"http://127.0.0.1:{port}" for port in self.api_ports]
        self.children: dict[str, Child] = {}
        self.keys: dict[str, str] = {}
        self.harms: list[Harm] = []
        self.s3 = s3_client(self.site)
        self._own = threading.local()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _harden_postgres(self) -> None:
        """What it has committed survives its own death (not the machine's); and its connections can be used up."""
        options = ("-c", "synchronous_commit=on", "-c", f"max_connections={CONNECTIONS}", "-c", "log_lock_waits=on")
        program = self.servers.programs["postgres"]
        self.servers.programs["postgres"] = type(program)(
            program.name,
            (*program.command, *options),
            program.environment,
            program.stop_signal,
            stale_file=program.stale_file,
        )
        write_programs(self.site.home, list(self.servers.programs.values()))

    # Life

    def start(self) -> None:
        self.servers.start(*self.servers.programs)
        self.network.start()
        migrate(self.database_url)
        create_bucket(self.site, BUCKET)
        settings = Settings(database_url=self.database_url, key_pepper=self.site.secrets["pepper"])
        database = connect(settings, pool=1)
        with transaction(database) as connection:
            for name in TENANTS:
                tenant = ensure_tenant(connection, name)
                connection.execute(LIMIT, {"tenant": tenant})
                key = create_key(connection, tenant, "storm", [Scope.ADMIN], self.site.secrets["pepper"])
                self.keys[name] = key.secret
                for model in read(SHIPPED_CATALOG).models.values():
                    licences.accept(connection, tenant, key.id, model.licence)
            connection.exec_driver_sql(WITNESS)
        database.dispose()
        for child in self.processes():
            self.children[child.name] = child
        self._keeper.start()
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = START_S) -> None:
        deadline = time.monotonic() + seconds
        render_workers = sum("render" in child.arguments for child in self.children.values())
        while not (all(map(answers, self.urls)) and len(self.ready_workers()) == render_workers):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the farm did not become ready; see {self.home / 'processes'}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join(30)
        self.servers.stop()
        shutil.rmtree(self.site.home, ignore_errors=True)

    def processes(self) -> list[Child]:
        shared = self.environment(self.network.proxies)
        worker, api = ["worker", "render"], ["api", "--port"]
        environments = {OWN_STORE_WORKER: self.environment({**self.network.proxies, "s3": self.network[OWN_STORE]})}
        stubs = [(name, f"stub:0.03:{self.sickness(name)}") for name in (f"stub-{n}" for n in range(1, STUBS + 1))]
        return [
            *(Child(f"api-{n}", [*api, str(port)], shared) for n, port in enumerate(self.api_ports, 1)),
            *(Child(f"control-{n}", ["worker", "control"], shared) for n in range(1, CONTROLS + 1)),
            *(Child(name, [*worker, "--device", device], environments.get(name, shared)) for name, device in stubs),
            Child("mini-1", [*worker, "--device", "cpu", "--models", "mini-zh"], shared),
        ]

    def environment(self, proxies: Mapping[str, Proxy]) -> dict[str, str]:
        """Of a process that reaches Postgres, Valkey and S3 through these proxies."""
        database_url = self.database_url.replace(f":{self.site.ports['postgres']}/", f":{proxies['postgres'].port}/")
        rhythm = {f"HUAFANG_{name.upper()}": str(seconds) for name, seconds in vars(self.rhythm).items()}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HUAFANG_", "COV_"))},
            **rhythm,
            "HUAFANG_DATABASE_URL": database_url,
            "HUAFANG_REDIS_URL": f"redis://:{self.site.secrets['valkey']}@127.0.0.1:{proxies['valkey'].port}/0",
            "HUAFANG_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxies['s3'].port}",
            "HUAFANG_S3_PUBLIC_URL": f"http://127.0.0.1:{self.site.ports['s3']}",
            "HUAFANG_S3_ACCESS_KEY": S3_ACCOUNT,
            "HUAFANG_S3_SECRET_KEY": self.site.secrets["s3"],
            "HUAFANG_S3_BUCKET": BUCKET,
            "HUAFANG_KEY_PEPPER": self.site.secrets["pepper"],
            "HUAFANG_HOME": str(self.home),
            "HUAFANG_TORCH_THREADS": "1",
            "HUAFANG_SWEEP": "false" if self.sabotage == "sweep" else "true",
            "OMP_NUM_THREADS": "1",
            "STORM_TRAPS": str(self.traps),
            "STORM_SABOTAGE": self.sabotage or "",
        }

    # The keeper: what supervisord is to a farm

    def _keep(self) -> None:
        """In one thread from the first start to the end: the processes die with the thread that started them."""
        while not self._closing.wait(0.05):
            for child in self.children.values():
                if child.process is None or child.process.poll() is not None:
                    self._start(child)
        for child in self.children.values():
            child.send(signal.SIGKILL)
        for child in self.children.values():
            if child.process:
                child.process.wait(10)

    def _start(self, child: Child) -> None:
        if child.process is not None:
            self.harm(child.name, f"exit {child.process.returncode}", time.time() - 0.1, time.time())
            time.sleep(RESTART_S)
        child.started = time.time()
        arguments = [*child.arguments, *(["--name", child.name] if "render" in child.arguments else [])]
        with open(self.home / "processes" / f"{child.name}.log", "ab") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.sabotaged", *arguments],
                cwd=HOME,
                env={**child.environment, "STORM_NAME": child.name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def harm(self, name: str, kind: str, began: float, ended: float) -> None:
        self.harms.append(Harm(name, kind, began, ended))

    # Servers, directly

    @property
    def database_url(self) -> str:
        return self.site.database_url(self.site.host)

    def query(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """Ask Postgres past the bad network, on a connection of this thread; patient while it restarts."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return list(self._connection().execute(statement.encode(), parameters).fetchall())
            except psycopg.OperationalError:
                self._own.connection = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _connection(self) -> psycopg.Connection[dict[str, Any]]:
        connection = getattr(self._own, "connection", None)
        if connection is None or connection.closed:
            options = {"autocommit": True, "row_factory": dict_row, "application_name": "storm"}
            self._own.connection = connection = psycopg.connect(self.database_url, connect_timeout=2, **options)
        return connection

    def redis(self) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.site.ports["valkey"], password=self.site.secrets["valkey"])

    def restart(self, name: str, *, crash: bool = True, down_s: float = 0.0) -> None:
        """Only from the thread that started the servers: they die with it."""
        child = self.servers.children.pop(name)
        if crash and name == "postgres":
            child.send_signal(signal.SIGQUIT)  # what `pg_ctl restart -m immediate` does
        else:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait(20)
        wait_until_ended(self.site.home, name, 20)
        time.sleep(down_s)
        self.servers.start(name)

    def ready_workers(self) -> dict[str, str]:
        """Name and id of those that are ready."""
        rows = self.query("SELECT id, name FROM workers WHERE state = 'ready' ORDER BY started_at")
        return {row["name"]: row["id"] for row in rows}

    def busy_workers(self) -> list[str]:
        """Names of the workers that hold a started lease, not of those whose dead predecessors do."""
        rows = self.query(
            "SELECT DISTINCT workers.name, extract(epoch FROM workers.started_at)::float AS started"
            " FROM leases JOIN workers ON workers.id = leases.worker_id"
            " WHERE leases.ended_at IS NULL AND leases.started_at IS NOT NULL AND expires_at > now()"
        )
        return sorted(row["name"] for row in rows if row["started"] > self.children[row["name"]].started)

    def busy_stubs(self) -> list[str]:
        return [name for name in self.busy_workers() if name.startswith("stub")]

    def sickness(self, name: str) -> Path:
        """The file that makes the device of a stub sick."""
        return self.home / f"sick.{name}"

    def save_tables(self) -> None:
        """What a violation is understood by, afterwards."""
        for table in (
            "images",
            "jobs",
            "leases",
            "workers",
            "usage_entries",
            "usage_days",
            "storm_changes",
            "storm_stored",
        ):
            write_json(self.home / f"{table}.json", self.query(f"SELECT * FROM {table}"))
        write_json(self.home / "harms.json", [vars(harm) for harm in self.harms])

    # Traps

    def set_trap(self, name: str) -> None:
        (self.traps / name).touch()

    def unset_trap(self, name: str) -> None:
        (self.traps / name).unlink(missing_ok=True)

    def sprung(self, name: str) -> list[str]:
        """Who took this trap, once a time."""
        return [path.name.split(".")[1] for path in sorted((self.traps / "sprung").glob(f"{name}.*"))]

    def poisonings(self) -> list[tuple[str, str, float]]:
        """Which poison killed whom, when."""
        paths = (self.traps / "sprung").glob("poisoned by *")
        return [(path.name.split(".")[0], path.name.split(".")[1], path.stat().st_mtime) for path in paths]

    def said(self, name: str, words: str) -> int:
        """How often a server's log says this."""
        with suppress(FileNotFoundError):
            return self.site.log(name).read_text(errors="replace").count(words)
        return 0

    def logged(self, name: str, event: str) -> int:
        """How often a process of ours has logged this event."""
        return (self.home / "processes" / f"{name}.log").read_text(errors="replace").count(event)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(count: int) -> list[int]:
    """Below the range of outgoing connections: no client of a dead API takes its port."""
    found: list[int] = []
    while len(found) < count:
        port = FIRST_PORT + secrets.randbelow(PORT_COUNT)
        if port not in found and can_bind("127.0.0.1", port):
            found.append(port)
    return found


def make_home(parent: Path) -> Path:
    home = parent / f"storm-{uuid4().hex[:8]}"
    home.mkdir(parents=True, mode=0o700)
    return home


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False))


# A witness in the database: every change of state, of the fence or of the bytes, by whichever way it was made; and what
# was stored for whom, which is known when the rows of jobs are gone.
# Limits that are never reached, but counted.
LIMIT = text("""
    UPDATE tenants SET limits = '{"waiting_images": 1000000, "images_a_day": 1000000}' WHERE id = :tenant
""")

WITNESS = """
    CREATE TABLE storm_changes (
        at timestamptz NOT NULL DEFAULT clock_timestamp(), noun text NOT NULL, id uuid NOT NULL, job_id uuid,
        old_state text, new_state text NOT NULL, old_lease uuid, new_lease uuid, attempts int, key text, sha256 text);
    CREATE INDEX ON storm_changes (id);
    CREATE INDEX ON storm_changes (at) WHERE new_state = 'stored';
    CREATE TABLE storm_stored (
        id uuid NOT NULL, tenant_id uuid NOT NULL, model text NOT NULL, render_ms int, pixels int, bytes int);
    CREATE TABLE storm_submitted (at timestamptz NOT NULL DEFAULT now(), tenant_id uuid NOT NULL, images int NOT NULL);
    CREATE FUNCTION storm_note_image() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO storm_changes VALUES (DEFAULT, 'image', NEW.id, NEW.job_id, OLD.state, NEW.state,
            OLD.lease_id, NEW.lease_id, NEW.attempts, NEW.key, NEW.sha256);
        IF NEW.state = 'stored' AND OLD.state <> 'stored' AND to_jsonb(NEW) -> 'reused' IS DISTINCT FROM 'true' THEN
            INSERT INTO storm_stored
            SELECT NEW.id, tenant_id, recipe ->> 'model', NEW.render_ms,
                   (recipe ->> 'width')::int * (recipe ->> 'height')::int, NEW.bytes
            FROM jobs WHERE id = NEW.job_id;
        END IF;
        RETURN NULL; END $$;
    CREATE FUNCTION storm_note_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO storm_changes (noun, id, job_id, old_state, new_state)
        VALUES ('job', NEW.id, NEW.id, OLD.state, NEW.state);
        RETURN NULL; END $$;
    CREATE FUNCTION storm_note_submission() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO storm_submitted (tenant_id, images) VALUES (NEW.tenant_id, NEW.count);
        RETURN NULL; END $$;
    CREATE TRIGGER storm_submission AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION storm_note_submission();
    CREATE TRIGGER storm_image AFTER UPDATE ON images FOR EACH ROW
        WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION storm_note_image();
    CREATE TRIGGER storm_job AFTER UPDATE ON jobs FOR EACH ROW
        WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION storm_note_job();
"""
