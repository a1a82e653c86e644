"""How long a start takes. A worker, from the start of its process to its first claim and to its first image in the
store, with the stub and with mini-zh (which imports torch); the API until it reports that it is ready. And the CPU time
of the API's imports: beside FastAPI, SQLAlchemy, Celery and boto3 as bare imports, of which Celery's and FastAPI's load
most of their code later, and beside all its libraries in use: one route, the dialect of Postgres, a Celery app, the
clients of Redis and Prometheus, settings, tokenizers. The rest is the farm's own code.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Row, text

from bench.harness.farm import Farm, answers, farm, wait_until
from bench.harness.measurement import HOME, Figures, Goal, Options, Sides
from common.accounts import tenants
from common.catalog import catalog
from common.config import SHIPPED_CATALOG
from common.db import connect, transaction
from common.queue import jobs
from common.recipes.recipe import Draft, resolve
from embedded.farm import variables

BARE = "import fastapi, sqlalchemy, celery, boto3"
IN_USE = """
import boto3, prometheus_client, pydantic_settings, redis, sqlalchemy.dialects.postgresql, tokenizers
from celery import Celery
from fastapi import FastAPI
Celery(broker="redis://")
app = FastAPI()
@app.get("/")
def answer() -> dict[str, int]: ...
"""
IMPORTS = {"import api.app": "import api.app", "its libraries, in use": IN_USE, "the four, bare": BARE}
CPU, READY, CLAIM, PICTURE = "CPU s", "s to ready", "s to the first claim", "s to the first picture"

GOALS = (
    Goal("import api.app", "the four, bare", CPU, at_most=1.2),
    Goal("import api.app", "its libraries, in use", CPU),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    times = 1 if options.quick else 5
    with farm() as the_farm:
        database = connect(the_farm.settings, pool=2)
        yield {
            "worker, stub": lambda: first_picture(the_farm, database, "stub"),
            "worker, mini-zh": lambda: first_picture(the_farm, database, "cpu"),
            "API": lambda: ready(the_farm),
            **{name: partial(imported, code, times) for name, code in IMPORTS.items()},
        }
        database.dispose()


def ready(the_farm: Farm) -> Figures:
    began = time.monotonic()
    with the_farm.api(the_farm.settings) as url:
        wait_until(lambda: answers(f"{url}/readyz"))
        return {READY: time.monotonic() - began}


def first_picture(the_farm: Farm, database: Engine, device: str) -> Figures:
    job_id = submit(database)
    command = ("worker", "render", "--device", device, "--models", "mini-zh")
    began = time.time()  # Postgres uses the same clock
    with the_farm.program(*command, **variables(the_farm.settings)) as process:

        def first() -> Row[Any] | None:
            with transaction(database) as connection:
                return connection.execute(FIRST, {"job": job_id}).first()

        row = wait_until(first, process)
        assert row
    return {CLAIM: row.claimed - began, PICTURE: row.stored - began}


def submit(database: Engine) -> UUID:
    shipped = catalog.read(SHIPPED_CATALOG)
    recipe = resolve(Draft.model_validate({"prompt": "红色的圆形"}), shipped, "mini-zh", root_seed=1)
    with transaction(database) as connection:
        tenant_id = tenants.ensure_tenant(connection, "bench")
        return jobs.submit(connection, tenant_id, recipe).id


FIRST = text("""
    SELECT cast(extract(epoch FROM leases.claimed_at) AS float) AS claimed,
           cast(extract(epoch FROM images.finished_at) AS float) AS stored
    FROM images JOIN leases ON leases.id = images.lease_id WHERE images.job_id = :job AND images.state = 'stored'
""")


def imported(code: str, times: int) -> Figures:
    """The minimum of several runs: other load only adds to it."""
    return {CPU: min(cpu_of(code) for _ in range(times)) - min(cpu_of("pass") for _ in range(times))}


def cpu_of(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=HOME, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
