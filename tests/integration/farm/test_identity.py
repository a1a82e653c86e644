"""A farm knows itself: no process works with a database, a bucket or a pepper of another farm."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from common.accounts.farm import Farm
from common.config import Settings
from common.db import connect, migrate, transaction
from common.errors import Unavailable, WrongFarm
from common.storage import MARK, Storage
from embedded.farm import variables
from embedded.instance import Instance
from tests.integration.farm.test_bootstrap import admin
from tests.support.serving import readiness, serving
from tests.support.stories import Story
from tests.support.workers import MakeWorker, bucket_of, log_of, running, until, until_published

OTHER_PEPPER = SecretStr("the pepper of another farm")
AWAY = "http://127.0.0.1:1"


@pytest.fixture
def other(servers: Instance, settings: Settings, s3_of_run: Any) -> Iterator[Settings]:
    """A second farm: all three are its own."""
    name = f"other-{uuid.uuid4().hex}"
    with psycopg.connect(servers.database_url(servers.host, "postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        s3_of_run.create_bucket(Bucket=name)
        url = SecretStr(servers.database_url(servers.host, name))
        migrate(url.get_secret_value())
        made = settings.model_copy(update={"database_url": url, "s3_bucket": name, "key_pepper": OTHER_PEPPER})
        compare(made)
        yield made
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def compare(settings: Settings, *, needs_pepper: bool = False) -> uuid.UUID:
    """What a process does when it starts."""
    engine = connect(settings, pool=1)
    pepper = settings.key_pepper.get_secret_value()
    try:
        return Farm(engine, Storage(settings, attempts=1), pepper, needs_pepper=needs_pepper).compare()
    finally:
        engine.dispose()


def changed(settings: Settings, **change: Any) -> Settings:
    return settings.model_copy(update=change)


def delete_mark(settings: Settings) -> None:
    Storage(settings).delete([MARK])


# The comparison


def test_the_first_process_writes_the_id_and_all_others_find_it(settings: Settings, database: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        (farm,) = set(pool.map(compare, [settings] * 8))
    with transaction(database) as connection:
        row = connection.execute(text("SELECT id, pepper_digest FROM farm")).one()
    assert row.id == farm
    mark = Storage(settings).read_mark()
    assert mark
    assert json.loads(mark) == {"farm": str(farm), "pepper": row.pepper_digest}
    assert settings.key_pepper.get_secret_value() not in str(row)


def test_of_two_first_processes_with_two_buckets_one_is_refused(settings: Settings, other: Settings) -> None:
    """Otherwise each bucket would carry the farm's id, and nothing would tell them apart any more."""
    delete_mark(other)
    both = [settings, changed(settings, s3_bucket=other.s3_bucket)]

    def outcome(of_process: Settings) -> str:
        try:
            compare(of_process)
        except WrongFarm as refused:
            return str(refused.message.code)
        return "accepted"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, both * 4))
    assert set(outcomes[::2]) ^ set(outcomes[1::2]) == {"accepted", "bucket_without_mark"}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("s3_bucket", "bucket_of_another_farm"),
        ("database_url", "database_of_another_farm"),
        ("key_pepper", "pepper_of_another_farm"),
    ],
)
def test_the_sentence_says_which_of_the_three_is_another_farms(
    settings: Settings, other: Settings, wrong: str, code: str
) -> None:
    compare(settings)
    with pytest.raises(WrongFarm) as refused:
        compare(changed(settings, **{wrong: getattr(other, wrong)}))
    assert refused.value.message.code == code
    assert "huafang admin migrate --adopt" in refused.value.message
    compare(settings)
    compare(other)


def test_without_the_pepper_a_worker_tells_two_farms_apart_and_an_api_asks_for_it(
    settings: Settings, other: Settings
) -> None:
    """A worker that joins from another machine is not given the pepper."""
    compare(settings)
    without = changed(settings, key_pepper=SecretStr(""))
    assert compare(without) == compare(settings)
    with pytest.raises(WrongFarm, match="HUAFANG_KEY_PEPPER is not set"):
        compare(without, needs_pepper=True)
    with pytest.raises(WrongFarm) as refused:
        compare(changed(without, s3_bucket=other.s3_bucket))
    assert refused.value.message.code == "bucket_and_database_differ"


def test_the_pepper_is_compared_while_the_store_is_away(settings: Settings, other: Settings) -> None:
    compare(settings)
    away = changed(settings, s3_endpoint_url=AWAY)
    with pytest.raises(Unavailable, match="store is down"):
        compare(away)
    with pytest.raises(WrongFarm, match="PEPPER"):
        compare(changed(away, key_pepper=other.key_pepper))


def test_a_bucket_that_was_made_anew_is_refused_until_it_is_adopted(settings: Settings) -> None:
    farm = compare(settings)
    delete_mark(settings)
    with pytest.raises(WrongFarm, match="lost its images"):
        compare(settings)
    run_admin(settings, "migrate", "--adopt=bucket")
    assert compare(settings) == farm


def test_what_says_whose_the_bucket_is_may_be_damaged(settings: Settings) -> None:
    compare(settings)
    for damaged in (b"", b"[]", b'{"farm": 1, "pepper": null}', b"{}"):
        Storage(settings).write_mark(damaged, replace=True)
        with pytest.raises(WrongFarm, match=MARK):
            compare(settings)


def test_a_new_pepper_is_refused_until_it_is_adopted(settings: Settings, other: Settings) -> None:
    compare(settings)
    rotated = changed(settings, key_pepper=other.key_pepper)
    run_admin(rotated, "migrate", "--adopt=pepper")
    compare(rotated)
    with pytest.raises(WrongFarm, match="PEPPER"):
        compare(settings)


def test_adopting_a_pepper_leaves_another_farms_bucket_alone(settings: Settings, other: Settings) -> None:
    """Whoever sets two things at once may have set one of them wrong."""
    compare(settings)
    theirs = Storage(other).read_mark()
    rotated = changed(settings, key_pepper=SecretStr("a new pepper"))
    run_admin(changed(rotated, s3_bucket=other.s3_bucket), "migrate", "--adopt=pepper")
    assert Storage(other).read_mark() == theirs
    compare(other)


# Processes


def run_admin(settings: Settings, *arguments: str) -> str:
    given = {name.removeprefix("HUAFANG_").lower(): value for name, value in variables(settings).items()}
    done = admin(*arguments, **given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_migrate_writes_the_id(settings: Settings) -> None:
    run_admin(settings, "migrate")
    assert Storage(settings).read_mark()


def test_migrate_and_bootstrap_touch_no_other_farm(settings: Settings, other: Settings) -> None:
    compare(settings)
    given = {name.removeprefix("HUAFANG_").lower(): value for name, value in variables(settings).items()}
    wrong = given | {"database_url": other.database_url.get_secret_value()}
    for command in ("migrate", "bootstrap"):
        done = admin(command, "--wait=30", **wrong)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("huafang: The database is another farm's"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_an_image_store_migrate_says_that_the_bucket_is_not_known(settings: Settings) -> None:
    done = json.loads(run_admin(changed(settings, s3_endpoint_url=AWAY), "migrate"))
    assert "not known yet" in done["note"]
    compare(settings)


@pytest.mark.parametrize("wrong", ["s3_bucket", "database_url", "key_pepper"])
@pytest.mark.parametrize("kind", ["render", "control"])
def test_a_worker_of_another_farm_is_refused_before_it_claims(
    story: Story, settings: Settings, other: Settings, tmp_path: Path, kind: str, wrong: str
) -> None:
    compare(settings)
    job = story.submit()
    with running(tmp_path, changed(settings, **{wrong: getattr(other, wrong)}), kind) as worker:
        assert worker.wait(60) == 1
        assert "another farm's" in (last := log_of(worker).splitlines()[-1]) or "not the pepper" in last
        assert "Traceback" not in log_of(worker)
    assert story.job(job).state == "queued"
    assert story.rows("SELECT FROM leases") == []
    assert bucket_of(other) == {}


@pytest.mark.parametrize("wrong", ["s3_bucket", "database_url", "key_pepper"])
def test_an_api_of_another_farm_does_not_start(settings: Settings, other: Settings, wrong: str) -> None:
    compare(settings)
    mixed = variables(changed(settings, **{wrong: getattr(other, wrong)}))
    command, environment = [sys.executable, "-m", "api", "--port", "0"], {**os.environ, **mixed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "another farm's" in (last := done.stderr.splitlines()[-1]) or "not the pepper" in last
    assert "Traceback" not in done.stderr


# While it runs


@contextmanager
def swapped_bucket(settings: Settings, other: Settings, s3: Any) -> Iterator[Callable[[], None]]:
    """The store goes away, and has another farm's bucket in place of this one's when the call makes it come back.

    The right one is back after the block.
    """
    mine, theirs = Storage(settings).read_mark(), Storage(other).read_mark()
    assert mine
    assert theirs
    kept = bucket_of(settings)
    for key in (*kept, MARK):
        s3.delete_object(Bucket=settings.s3_bucket, Key=key)
    s3.delete_bucket(Bucket=settings.s3_bucket)

    def come_back() -> None:
        s3.create_bucket(Bucket=settings.s3_bucket)
        Storage(settings).write_mark(theirs, replace=True)

    yield come_back
    for key, data in kept.items():
        s3.put_object(Bucket=settings.s3_bucket, Key=key, Body=data)
    Storage(settings).write_mark(mine, replace=True)


def test_readiness_says_that_the_bucket_is_another_farms(
    settings: Settings, other: Settings, database: Engine, s3_of_run: Any
) -> None:
    """And that it is away is no reason to take the API out of service."""
    compare(settings)
    with serving(settings, database) as api, api.stranger() as client:
        readiness(client, 200, '"farm":"ok"')
        with swapped_bucket(settings, other, s3_of_run) as come_back:
            away = readiness(client, 200, "degraded").json()["checks"]
            assert (away["farm"], away["s3"] != "ok") == ("ok", True)
            come_back()
            answer = readiness(client, 503, "another farm's")
            assert [error["field"] for error in answer.json()["errors"]] == ["farm"]
            with pytest.raises(WrongFarm):
                api.app.state.shared.storage.put("k", b"x", "image/png")
            assert bucket_of(settings) == {}
        assert readiness(client, 200, '"farm":"ok"').json()["status"] == "ready"


def test_readiness_does_not_take_away_for_wrong(settings: Settings, database: Engine) -> None:
    """An API that starts during an outage."""
    with serving(changed(settings, s3_endpoint_url=AWAY), database) as api, api.stranger() as client:
        assert readiness(client, 200, "degraded").json()["checks"]["farm"] == "ok"


def test_a_bucket_swapped_under_a_running_worker_is_noticed_when_the_store_is_back(
    story: Story,
    settings: Settings,
    other: Settings,
    make_worker: MakeWorker,
    s3_of_run: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stores nothing there, claims nothing more, and goes on once the bucket is the right one again."""
    worker, first = make_worker(), story.submit()
    worker.loop.run(30)
    until_published(worker)
    with swapped_bucket(settings, other, s3_of_run) as come_back:
        second = story.submit()
        worker.loop.run(30)
        until(lambda: "storage_away" in caplog.text)
        come_back()
        until(lambda: "wrong_farm" in caplog.text)
        third = story.submit()
        worker.loop.run(1)
        assert (story.job(second).state, story.job(third).state) == ("running", "queued")
        assert bucket_of(settings) == {}
        assert not worker.heartbeat.beat(), "it is not ready"
    until_published(worker)
    worker.loop.run(30)
    until_published(worker)
    assert {story.job(job).state for job in (first, second, third)} == {"succeeded"}


def test_a_worker_tries_out_storing_in_no_other_farms_bucket(
    settings: Settings, other: Settings, make_worker: MakeWorker, s3_of_run: Any
) -> None:
    """Otherwise it would report that it can store."""
    worker = make_worker()
    worker.farm.compare()
    with swapped_bucket(settings, other, s3_of_run) as come_back:
        come_back()
        assert not worker.store_watch.try_out()
        assert worker.store_watch.cannot_store_s is not None
    assert worker.store_watch.try_out()


@contextmanager
def swapped_database(settings: Settings, other: Settings) -> Iterator[None]:
    """The other farm's database has the address of this one's while the block lasts."""
    server, _, mine = settings.database_url.get_secret_value().rpartition("/")
    theirs, aside = other.s3_bucket, f"aside-{uuid.uuid4().hex}"

    def rename(*names: tuple[str, str]) -> None:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            for before, after in names:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [before]
                )
                connection.execute(f'ALTER DATABASE "{before}" RENAME TO "{after}"'.encode())

    rename((mine, aside), (theirs, mine))
    try:
        yield
    finally:
        rename((mine, theirs), (aside, mine))


def test_a_database_swapped_under_a_running_worker_is_noticed_when_it_connects_again(
    story: Story, settings: Settings, other: Settings, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another farm it claims nothing, and tells it nothing."""
    theirs = connect(other, pool=1)
    Story(theirs).submit()
    theirs.dispose()
    worker = make_worker()
    worker.loop.run(1)
    worker.heartbeat.beat()
    with swapped_database(settings, other):
        worker.loop.run(1)
        until(lambda: not worker.loop.run(1) and "wrong_farm" in caplog.text)
        for error in (Unavailable, WrongFarm):  # its connection was lost, and a new one is another farm's
            with pytest.raises(error):
                worker.heartbeat.beat()
        with psycopg.connect(settings.database_url.get_secret_value()) as connection:
            rows = connection.execute("SELECT (SELECT count(*) FROM leases), (SELECT count(*) FROM workers)").fetchone()
        assert rows == (0, 0)
    job = story.submit()
    until(lambda: worker.loop.run(30) or (not worker.held_leases.ids() and story.job(job).state == "succeeded"))
