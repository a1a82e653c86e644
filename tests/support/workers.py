"""Render workers for tests, in this process or as processes of their own; what they log, hold and store."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import boto3
import psycopg
from botocore.config import Config
from sqlalchemy import text

from common.config import Settings
from common.db import transaction
from common.queue import quarantines
from common.sentences import Sentence
from common.storage import MARK
from embedded.farm import variables
from tests.support.stories import Story
from worker.render.worker import RenderWorker

T = TypeVar("T")

MakeWorker = Callable[..., RenderWorker]

SLOW = "stub:0.03"  # seconds a step
QUICK = {"LEASE_S": "1.5", "BEAT_S": "0.3", "SWEEP_S": "0.3", "TRIAL_S": "0.3"}


def until(condition: Callable[[], T], seconds: float = 90) -> T:
    """Wait until the condition is true; its value then. The limit holds on a machine with a load of 20."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true after {seconds:g} s"
        time.sleep(0.02)
    return value


def until_blocked(story: Story, connections: int = 1) -> None:
    """Wait until so many connections wait for what another transaction has locked."""
    statement = """
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
    """
    until(lambda: len(story.rows(statement)) == connections)


@contextmanager
def locked(story: Story, table: str) -> Iterator[None]:
    """Who reads this table waits."""
    with story.database.connect() as connection:
        connection.exec_driver_sql(f"LOCK TABLE {table}")
        yield


def until_published(worker: RenderWorker) -> None:
    """Wait until the worker holds no lease: all that it rendered is published, or released."""
    until(lambda: not worker.held_leases.ids())


def holds_leases_for(worker: RenderWorker, seconds: float) -> bool:
    """Whether the worker still holds a lease after so long."""
    deadline = time.monotonic() + seconds
    while worker.held_leases.ids() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(worker.held_leases.ids())


def until_ended(story: Story, *jobs: UUID, seconds: float = 90) -> list[str]:
    """Wait until these jobs have ended, and say how."""
    statement = text("SELECT state FROM jobs WHERE id = ANY(:jobs) AND finished_at IS NOT NULL")

    def ended() -> list[str]:
        with story.database.connect() as connection:
            return list(connection.execute(statement, {"jobs": list(jobs)}).scalars())

    until(lambda: len(ended()) == len(jobs), seconds)
    return ended()


@contextmanager
def running(folder: Path, settings: Settings, *arguments: str, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m worker …` with these settings. Its log is `log_of` the process; it ends with the block."""
    environment = {**os.environ, **variables(settings), **{f"HUAFANG_{key}": value for key, value in changes.items()}}
    path = folder / f"worker-{time.monotonic_ns()}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", *arguments], env=environment, stdout=log, stderr=log
        )
    LOGS[process.pid] = path
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


LOGS: dict[int, Path] = {}


def log_of(process: subprocess.Popen[bytes]) -> str:
    return LOGS[process.pid].read_text()


def bucket_of(settings: Settings) -> dict[str, bytes]:
    """All that the store holds, by key, but for what says whose the bucket is."""
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    listing = client.list_objects_v2(Bucket=settings.s3_bucket).get("Contents", [])
    return {
        item["Key"]: client.get_object(Bucket=settings.s3_bucket, Key=item["Key"])["Body"].read()
        for item in listing
        if item["Key"] != MARK
    }


def ready_workers(story: Story) -> list[Mapping[str, Any]]:
    with story.database.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM workers WHERE state = 'ready' ORDER BY id").mappings()
        return list(rows)


def quarantine(story: Story, name: str, reason: str = "its trial picture failed") -> None:
    """Quarantine the workers of this name; their next trial is in an hour."""
    with transaction(story.database) as connection:
        assert quarantines.quarantine(connection, name, Sentence(reason, "for_the_test", {}), rest_s=3600)


def quarantined(story: Story) -> list[str]:
    """The names that are quarantined."""
    return [row.name for row in story.rows("SELECT name FROM quarantines ORDER BY name")]


@contextmanager
def nobody_let_in(settings: Settings) -> Iterator[None]:
    """Postgres takes no new connection while the block lasts; those that are open stay."""
    with _beside(settings) as (connection, name):
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


def terminate_connections(settings: Settings) -> None:
    """Postgres ends all connections to the database."""
    with _beside(settings) as (connection, name):
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


@contextmanager
def _beside(settings: Settings) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A connection to another database of the server, and the name of this one."""
    server, _, name = settings.database_url.get_secret_value().rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        yield connection, name
