"""An upgrade and the way back, under load: nothing is refused, nothing is lost, and old code works on new tables."""

import hmac
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import SecretStr
from sqlalchemy import Engine, text

from common import db, uploads
from common.accounts import licences
from common.accounts.keys import PREFIX
from common.accounts.tenants import ensure_tenant
from common.batches import lifecycle as batches
from common.batches.plan import Plan
from common.config import Settings
from common.db import new_id, transaction
from common.queue import jobs
from common.uploads import Upload
from embedded.farm import variables
from embedded.instance import Instance
from tests.faults.farm import WITNESS
from tests.faults.promises import MUST_BE_EMPTY
from tests.support.future import make_batch_newer, make_job_newer
from tests.support.stories import CATALOG, Story
from tests.support.workers import until
from tests.upgrade.farm import LOOK, Balancer, Load, Process, Replica, under_load, until_busy
from tests.upgrade.releases import HOME, future_migrations, migrate_by, unpack_base

RHYTHM = {"LEASE_S": "2", "BEAT_S": "0.5", "SWEEP_S": "0.5", "DRAIN_S": "4", "MODELS": "zh-v0", "TORCH_THREADS": "1"}
STUB = "stub:0.02"  # seconds a step: leases are held all the time


class Farm:
    """The processes of both releases on one database."""

    def __init__(self, home: Path, settings: Settings, old: Path) -> None:
        self.old = old
        self.settings = settings
        self.database_url = settings.database_url.get_secret_value()
        self.variables = variables(settings) | {f"HUAFANG_{name}": value for name, value in RHYTHM.items()}
        self.balancer = Balancer()
        self.processes: list[Process] = []
        self.control: Process
        self.stub: Process
        self._home = home
        self._database = psycopg.connect(self.database_url, autocommit=True, row_factory=dict_row)

    def start(self, name: str, kind: Callable[..., Process], release: Path, *arguments: str) -> Any:
        name = f"{'old' if release == self.old else 'new'}-{name}-{len(self.processes)}"
        process = kind(name, release, list(arguments), self.variables, self._home / f"{name}.log")
        self.processes.append(process)
        return process

    def start_control(self, release: Path) -> Process:
        process: Process = self.start("control", Process, release, "worker", "control")
        return process

    def start_apis(self, release: Path) -> list[Replica]:
        return [self.start("api", Replica, release) for _ in range(2)]

    def start_stub(self, release: Path) -> Process:
        name = f"stub-{len(self.processes)}"
        process: Process = self.start("stub", Process, release, "worker", "render", "--device", STUB, "--name", name)
        return process

    def start_all(self, release: Path) -> None:
        self.control, self.stub = self.start_control(release), self.start_stub(release)
        for replica in self.start_apis(release):
            until(replica.is_ready)
            self.balancer.join(replica)
        until(lambda: self.is_up(self.stub))

    def replace_all(self, release: Path) -> None:
        """One by one: the new one is ready, then the old one is stopped. The way back has the opposite order."""
        control, stub, apis = self.start_control(release), self.start_stub(release), self.start_apis(release)

        def replace_control() -> None:
            self.control.drain()
            self.control = control

        def replace_apis() -> None:
            for former, replica in zip(list(self.balancer.replicas), apis, strict=True):
                until(replica.is_ready)
                self.balancer.join(replica)
                self.balancer.leave(former)
                former.drain()

        def replace_stub() -> None:
            until(lambda: self.is_up(stub))
            self.stub.drain()
            self.stub = stub

        steps = (replace_control, replace_apis, replace_stub)
        for step in reversed(steps) if release == self.old else steps:
            step()

    def is_up(self, stub: Process) -> bool:
        assert stub.child.poll() is None, stub.end_of_log()
        name = stub.arguments[-1]
        return bool(self.ask("SELECT FROM workers WHERE name = %s AND state = 'ready'", name))

    def kill_while_it_renders(self, stub: Process) -> None:
        held = "SELECT FROM leases JOIN workers ON workers.id = worker_id WHERE name = %s AND ended_at IS NULL"
        until(lambda: self.ask(f"{held} AND leases.started_at IS NOT NULL", stub.arguments[-1]))
        stub.kill()

    def ask(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        return self._database.execute(statement.encode(), parameters).fetchall()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        self._database.close()


@pytest.fixture
def farm(servers: Instance, settings: Settings, tmp_path: Path) -> Iterator[Farm]:
    """Empty, with the tables of the old release."""
    old, name = unpack_base(tmp_path / "old"), f"upgrade-{secrets.token_hex(8)}"
    with psycopg.connect(servers.database_url(servers.host, "postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        url = SecretStr(servers.database_url(servers.host, name))
        farm = Farm(tmp_path, settings.model_copy(update={"database_url": url}), old)
        try:
            done = migrate_by(old, farm.variables)
            assert done.returncode == 0, done.stderr
            yield farm
        finally:
            farm.stop()
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


# As the release before does it: a key has had an end since then.
INSERT_KEY = text("""
    INSERT INTO api_keys (id, tenant_id, name, digest, scopes) VALUES (:id, :tenant, 'a key', :digest, '{admin}')
    RETURNING id
""")


def make_key(database: Engine, pepper: str) -> str:
    with transaction(database) as connection:
        connection.exec_driver_sql(WITNESS)
        tenant = ensure_tenant(connection, "somebody")
        secret = PREFIX + secrets.token_urlsafe(32)
        digest = hmac.digest(pepper.encode(), secret.encode(), "sha256")
        key_id = connection.execute(INSERT_KEY, {"id": new_id(), "tenant": tenant, "digest": digest}).scalar_one()
        licences.accept(connection, tenant, key_id, CATALOG.get("zh-v0").licence)
    return secret


def plant_newer_work(database: Engine) -> tuple[UUID, UUID]:
    """A job and a batch of a release after this one."""
    story = Story(database)
    upload = Upload(new_id(), "txt", 0, "")
    with transaction(database) as connection:
        tenant = ensure_tenant(connection, "somebody")
        job = jobs.submit(connection, tenant, story.recipe(**LOOK | {"height": 128}))
        make_job_newer(connection, job.id)
        uploads.record(connection, tenant, upload)
        batch = batches.submit(
            connection, tenant, upload.id, Plan(defaults={"model": "zh-v0"}, images_per_prompt=1, seed=1)
        )
        make_batch_newer(connection, batch)
    return job.id, batch


def signed_in(farm: Farm, secret: str) -> tuple[httpx.Client, list[str]]:
    """A browser with a session, and the files that its page names."""
    url = farm.balancer.replicas[0].url
    browser = httpx.Client(base_url=url, trust_env=False, timeout=60, headers={"Origin": url})
    browser.post("/dashboard/sign-in", data={"key": secret})
    page = browser.get("/dashboard/")
    assert page.status_code == 200
    return browser, re.findall(r'"(/dashboard/static/[^"]+)"', page.text)


def test_upgrade_and_back_under_load(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.start_all(farm.old)
    database = db.connect(farm.settings)
    secret = make_key(database, farm.settings.key_pepper.get_secret_value())
    load, (browser, files) = Load(farm.balancer, secret), signed_in(farm, secret)
    with under_load(farm.balancer, load):
        until_busy(load)
        monkeypatch.setattr(db, "MIGRATIONS", (future := future_migrations(tmp_path / "migrations"))[0])
        assert db.migrate(farm.database_url).revision == future[1]
        monkeypatch.undo()
        newer_job, newer_batch = plant_newer_work(database)

        farm.kill_while_it_renders(farm.stub)
        farm.stub = farm.start_stub(farm.old)
        until(lambda: farm.is_up(farm.stub))
        farm.replace_all(HOME)
        assert_goes_on(browser, farm, files)
        done = migrate_by(farm.old, farm.variables)
        assert (done.returncode, future[1] in done.stdout) == (0, True), done.stderr
        farm.control.kill()
        farm.control = farm.start_control(HOME)
        farm.kill_while_it_renders(farm.stub)
        farm.replace_all(farm.old)
        assert_goes_on(browser, farm, files)
        until_busy(load)

    assert farm.balancer.refused == []
    assert farm.balancer.not_ready == []
    assert len(load.jobs) > 30
    assert load.batches
    assert farm.balancer.looks > 20

    until(lambda: not farm.ask("SELECT FROM jobs WHERE finished_at IS NULL AND id <> %s", newer_job))
    until(lambda: not farm.ask("SELECT FROM batches WHERE finished_at IS NULL AND id <> %s", newer_batch))
    states = {str(row["id"]): row["state"] for row in farm.ask("SELECT id, state FROM jobs")}
    assert states.pop(str(newer_job)) == "queued"
    assert set(load.jobs) <= states.keys()
    assert set(states.values()) == {"succeeded"}
    ended = farm.ask("SELECT id, state, jobs FROM batches WHERE id <> %s", newer_batch)
    assert {(row["state"], row["jobs"]) for row in ended} == {("ended", 8)}
    assert set(load.batches) == {str(row["id"]) for row in ended}
    assert farm.ask("SELECT state, jobs FROM batches WHERE id = %s", newer_batch) == [{"state": "checking", "jobs": 0}]
    for promise, statement in MUST_BE_EMPTY:
        assert farm.ask(statement) == [], promise
    for process in farm.processes:
        assert "Traceback" not in process.log.read_text(), process.log
    database.dispose()


def assert_goes_on(browser: httpx.Client, farm: Farm, files: list[str]) -> None:
    """A page that was opened before the change of releases: its session and its files."""
    browser.base_url = farm.balancer.replicas[0].url
    assert browser.get("/dashboard/jobs").status_code == 200
    assert files
    for file in files:
        assert browser.get(file).status_code == 200, file


def test_the_old_release_lacks_nothing_that_its_pages_name(tmp_path: Path) -> None:
    """Whichever file the old dashboard names is still there."""
    static = Path("api/dashboard/static")
    named = {path.name for path in (unpack_base(tmp_path / "old") / static).iterdir()}
    assert named <= {path.name for path in (HOME / static).iterdir()}
