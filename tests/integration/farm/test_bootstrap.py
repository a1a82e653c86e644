"""Preparing a database from nothing, as compose and an operator do: migrate, bootstrap, and what can be wrong."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from common.accounts.keys import authenticate
from common.config import Settings
from common.db import connect, transaction
from embedded.instance import Instance


@contextmanager
def empty_database(servers: Instance) -> Iterator[str]:
    name = f"empty-{uuid.uuid4().hex}"
    with psycopg.connect(servers.database_url(servers.host, "postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        yield servers.database_url(servers.host, name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def admin(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {f"HUAFANG_{name.upper()}": value for name, value in variables.items()}
    command = [sys.executable, "-P", "-m", "common.bootstrap", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_from_an_empty_database_to_the_first_key(servers: Instance) -> None:
    with empty_database(servers) as url:
        early = admin("bootstrap", database_url=url, key_pepper="pepper")
        assert (early.returncode, early.stdout) == (1, "")
        assert "huafang admin migrate" in early.stderr

        for _ in range(2):  # the second finds nothing to do
            assert admin("migrate", database_url=url).returncode == 0

        made = json.loads(admin("bootstrap", database_url=url, key_pepper="pepper").stdout)
        engine = connect(Settings(database_url=url), pool=1)
        with transaction(engine) as connection:
            assert authenticate(connection, made["secret"], "pepper").scopes == {"admin", "operator"}
        engine.dispose()

        again = admin("bootstrap", database_url=url, key_pepper="pepper")
        assert (again.returncode, again.stdout) == (5, "")


@pytest.mark.parametrize("command", ["migrate", "bootstrap"])
@pytest.mark.parametrize("url", ["nonsense", "mysql://root@127.0.0.1/db", "postgresql://nobody@127.0.0.1:1/nothing"])
def test_a_database_that_is_none_is_one_sentence(command: str, url: str) -> None:
    done = admin(command, database_url=url, key_pepper="pepper")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("huafang: ")


@pytest.mark.parametrize("revision", ["0011", "r9999"])
def test_a_database_of_an_unknown_revision_is_one_sentence(servers: Instance, revision: str) -> None:
    with empty_database(servers) as url:
        assert admin("migrate", database_url=url).returncode == 0
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
        done = admin("migrate", database_url=url)
        assert done.returncode == 1
        assert revision in done.stderr
        assert "make a new database" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_no_key_without_a_pepper(servers: Instance) -> None:
    with empty_database(servers) as url:
        assert admin("migrate", database_url=url).returncode == 0
        done = admin("bootstrap", database_url=url)
        assert (done.returncode, done.stdout) == (1, "")
        assert "HUAFANG_KEY_PEPPER" in done.stderr
