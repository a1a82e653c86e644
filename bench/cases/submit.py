"""What it costs to submit. `no-op` is an endpoint of the same API with the same key check, body and validation that
stores nothing; `POST /v1/jobs` is the real one: a job in Postgres, a message in Redis, the job in the answer; both with
16 clients of one key, whose lookup those that come at once share. `1,000 in a request` is one batch of 1,000 prompts,
until all its jobs can be claimed. `bulk` is a batch from a file in the store, until its last prompt is expanded: read
twice, every prompt validated and its tokens counted, by one control worker. `bare COPY` copies the same rows, made
before, into the same tables with the same indexes and constraints, and does nothing else.
"""

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import quantiles
from typing import Any

import httpx
import psycopg
from sqlalchemy import Engine, text

from bench.harness import clients
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common import uploads
from common.accounts import tenants
from common.batches import lifecycle as batches
from common.batches.plan import Plan
from common.broker import Broker
from common.config import Settings
from common.db import connect, new_id, transaction
from common.storage import Storage, sha256, upload_key
from common.uploads import Upload

CLIENTS = 16
PLAN = Plan(defaults={"model": "mini-zh"}, images_per_prompt=1, seed=0)
TABLES = ("tenants", "uploads", "batches", "lanes", "jobs", "images")  # each after those that it points to
GOALS = (
    Goal("POST /v1/jobs", "no-op", "requests/s", at_least=0.3),
    Goal("bulk", "bare COPY", "jobs/s", at_least=0.5),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    requests = 300 if options.quick else 4000
    prompts = 10_000 if options.quick else 1_000_000
    file = "\n".join(f"红色的圆形，第{place}幅" for place in range(prompts)).encode()
    names = iter(f"bulk_{number}" for number in range(1000))
    with farm() as the_farm, the_farm.api(the_farm.settings, "bench.harness.noop") as url:
        database = connect(the_farm.settings, pool=1)
        headers = {"Authorization": f"Bearer {the_farm.key(database)}"}
        _, expanded = bulk(the_farm, next(names), file, prompts)
        rows = {table: rows_of(the_farm, expanded, table) for table in TABLES}
        yield {
            "no-op": lambda: post(f"{url}/v1/noop", headers, requests),
            "POST /v1/jobs": lambda: post(f"{url}/v1/jobs", headers, requests),
            "1,000 in a request": lambda: thousand(the_farm, url, headers, database),
            "bulk": lambda: {"jobs/s": prompts / bulk(the_farm, next(names), file, prompts)[0]},
            "bare COPY": lambda: {"jobs/s": prompts / copy(the_farm, next(names), rows)},
        }
        database.dispose()


def post(url: str, headers: dict[str, str], requests: int) -> Figures:
    body = json.dumps({"prompt": "红色的圆形", "model": "mini-zh", "seed": 7}, ensure_ascii=False).encode()
    clients.hammer(url, headers, body, CLIENTS, requests // 10)  # warm
    began = time.perf_counter()
    took = clients.hammer(url, headers, body, CLIENTS, requests)
    rate = len(took) / (time.perf_counter() - began)
    cuts = quantiles(took, n=100)
    return {"requests/s": rate, "p50 ms": 1000 * cuts[49], "p99 ms": 1000 * cuts[98]}


def thousand(the_farm: Farm, url: str, headers: dict[str, str], database: Engine) -> Figures:
    body = {"prompts": [f"红色的圆形，第{place}幅" for place in range(1000)], "defaults": {"model": "mini-zh"}}
    with the_farm.control(the_farm.settings):
        expand(the_farm.settings, database, "红色的圆形".encode())  # it is ready now
        began = time.perf_counter()
        answer = httpx.post(f"{url}/v1/batches", headers=headers, json=body, timeout=30, trust_env=False)
        answered = time.perf_counter() - began
        answer.raise_for_status()
        wait_until(lambda: is_expanded(database, answer.json()["id"]))
        return {"answered, ms": 1000 * answered, "all can be claimed, ms": 1000 * (time.perf_counter() - began)}


def bulk(the_farm: Farm, name: str, file: bytes, prompts: int) -> tuple[float, Settings]:
    """The seconds from the submission to the last job, by one control worker; and where the jobs are."""
    settings = the_farm.new_database(name)
    database = connect(settings, pool=1)
    with the_farm.control(settings):
        expand(settings, database, "红色的圆形".encode())  # it is ready now
        seconds = expand(settings, database, file)
    database.dispose()
    return seconds, settings


def expand(settings: Settings, database: Engine, file: bytes) -> float:
    upload = Upload(new_id(), "txt", len(file), sha256(file))
    Storage(settings).put_file(upload_key(upload.id, upload.format), io.BytesIO(file), "text/plain")
    with transaction(database) as connection:
        tenant_id = tenants.ensure_tenant(connection, "bench")
        uploads.record(connection, tenant_id, upload)
        batch_id = batches.submit(connection, tenant_id, upload.id, PLAN)
    Broker(settings).advance(batch_id)
    wait_until(lambda: is_expanded(database, batch_id), seconds=1800)
    with transaction(database) as connection:
        return float(connection.execute(TOOK, {"batch": batch_id}).scalar_one())


def is_expanded(database: Engine, batch_id: object) -> bool:
    with transaction(database) as connection:
        return connection.execute(EXPANDED, {"batch": batch_id}).first() is not None


def rows_of(the_farm: Farm, settings: Settings, table: str) -> tuple[str, list[bytes]]:
    """All columns that are not computed, and COPY's own text of the rows."""
    with connected(settings) as connection:
        columns = ", ".join(f'"{name}"' for (name,) in connection.execute(COLUMNS, [table]))
        with connection.cursor().copy(f"COPY {table} ({columns}) TO STDOUT".encode()) as out:
            return columns, [bytes(block) for block in out]


def copy(the_farm: Farm, name: str, rows: Mapping[str, tuple[str, list[bytes]]]) -> float:
    """The seconds that the jobs and images took."""
    with connected(the_farm.new_database(name)) as connection:
        began = time.perf_counter()
        for table, (columns, blocks) in rows.items():
            with connection.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as into:
                for block in blocks:
                    into.write(block)
        connection.commit()
        return time.perf_counter() - began


def connected(settings: Settings) -> "psycopg.Connection[Any]":
    return psycopg.connect(settings.database_url.get_secret_value())


EXPANDED = text("SELECT FROM batches WHERE id = :batch AND expanded_at IS NOT NULL")

TOOK = text("SELECT extract(epoch FROM expanded_at - created_at) FROM batches WHERE id = :batch")

COLUMNS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
