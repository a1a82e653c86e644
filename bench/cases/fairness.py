"""The shares of tenants and models when more images are queued than workers can render, with a fake GPU that takes 0.1
s for a microbatch of 8, and an instant store. `three tenants`: weights 1, 1 and 2, the first with 100,000 queued images
before the others submit; of the images claimed while all three have work, the share of each beside its weight, and the
wait of the second tenant's first image. `two models`: one worker, both models always with work; how often it changes.
`interactive`: one job after the other behind a bulk batch of a million images; how many microbatches are started
between its submission and its own start. One is allowed: it was claimed already. `all interactive`: a tenant has 9,600
images waiting in the tier interactive, two others of weights 1 and 2 have standard ones; the part of the claimed images
that those two get (one microbatch in twenty is theirs), and how they share it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

from sqlalchemy import Engine, Row, text

from bench.harness import backlog
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.accounts import tenants
from common.broker import Broker
from common.catalog.catalog import read
from common.config import SHIPPED_CATALOG, Settings
from common.db import connect, transaction
from common.enums import Tier
from common.queue import jobs
from common.queue.lanes import EXACT
from common.recipes.recipe import Draft, resolve

WEIGHTS = {"a": 1, "b": 1, "c": 2}
GPU = "stub:0.005"  # a step: 0.1 s a microbatch
FAST_GPU = "stub:0.001"
OTHERS = {"b": 1, "c": 2}
GOALS = (
    Goal("three tenants", measure="largest deviation from the weights", at_most=0.05),
    Goal("interactive behind 1M", measure="microbatches before it, worst", at_most=1),
    Goal("all interactive", measure="part of the others", at_least=0.045),
    Goal("all interactive", measure="largest deviation from the weights", at_most=0.1),
    Goal("two models", measure="microbatches a change of model"),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    scale = 20 if options.quick else 1
    with farm() as the_farm, the_farm.instant_store() as store:
        million = the_farm.new_database("million")
        database = connect(million, pool=1, statement_timeout_s=600)
        backlog.fill(database, "bulk", 1_000_000 // scale)
        backlog.vacuum(database)
        names = iter(f"fair_{number}" for number in range(1000))
        yield {
            "three tenants": lambda: three_tenants(
                the_farm, store, next(names), 100_000 // scale, 250 if options.quick else 1600
            ),
            "all interactive": lambda: all_interactive(the_farm, store, next(names), 6 if options.quick else 60),
            "two models": lambda: two_models(the_farm, store, next(names), 4 if options.quick else 40),
            "interactive behind 1M": lambda: interactive(
                the_farm, store, million, database, 3 if options.quick else 15
            ),
        }
        database.dispose()


def three_tenants(the_farm: Farm, store: str, name: str, many: int, images: int) -> Figures:
    settings = the_farm.new_database(name)
    database = connect(settings, pool=1, statement_timeout_s=600)
    backlog.fill(database, "a", many)
    with transaction(database) as connection:
        for tenant, weight in WEIGHTS.items():
            connection.execute(WEIGH, {"tenant": tenants.ensure_tenant(connection, tenant), "weight": weight})
    with the_farm.worker(settings, GPU, "--models", backlog.MODEL, S3_ENDPOINT_URL=store):
        wait_until(lambda: count(database, PUBLISHED) > 40)  # the first one has the farm to itself
        backlog.fill(database, "b", images)
        backlog.fill(database, "c", images)
        start = count(database, PUBLISHED)
        wait_until(lambda: count(database, PUBLISHED) > start + images, seconds=600)
    served = {row.name: row.images for row in rows(database, SERVED)}
    total, weights = sum(served.values()), sum(WEIGHTS.values())
    off = [abs(served[tenant] / total / (weight / weights) - 1) for tenant, weight in WEIGHTS.items()]
    (waited,) = rows(database, FIRST_WAIT)
    database.dispose()
    return {
        "largest deviation from the weights": max(off),
        **{f"images of {tenant}": float(served[tenant]) for tenant in WEIGHTS},
        "first image of b waited, s": float(waited.seconds),
    }


def all_interactive(the_farm: Farm, store: str, name: str, turns: int) -> Figures:
    """Until the lower tiers have had so many turns."""
    settings = the_farm.new_database(name)
    database = connect(settings, pool=1, statement_timeout_s=600)
    images = 160 * turns  # 20 microbatches of 8 a turn
    for tenant, weight in OTHERS.items():
        backlog.fill(database, tenant, images // 4, Tier.STANDARD)
        with transaction(database) as connection:
            connection.execute(WEIGH, {"tenant": tenants.ensure_tenant(connection, tenant), "weight": weight})
    backlog.fill(database, "all interactive", images, Tier.INTERACTIVE)
    with the_farm.worker(settings, FAST_GPU, "--models", backlog.MODEL, S3_ENDPOINT_URL=store):
        wait_until(lambda: count(database, PUBLISHED) >= images, seconds=600)
        served = {row.name: row.images for row in rows(database, SERVED_FIRST, images=images)}
    database.dispose()
    others = sum(served[tenant] for tenant in OTHERS)
    parts = {tenant: weight / sum(OTHERS.values()) for tenant, weight in OTHERS.items()}
    return {
        "part of the others": others / sum(served.values()),
        "largest deviation from the weights": max(abs(served[one] / others / part - 1) for one, part in parts.items()),
        **{f"images of {tenant}": float(served[tenant]) for tenant in OTHERS},
    }


def two_models(the_farm: Farm, store: str, name: str, seconds: float) -> Figures:
    """With the product's swap delay: a change costs the load of a model."""
    settings = the_farm.new_database(name)
    database = connect(settings, pool=1)
    for _ in range(50):
        for model in ("zh-v0", "mini-zh"):
            submit(database, settings, model, Tier.STANDARD, count=64)
    with the_farm.worker(settings, GPU, "--models", "zh-v0,mini-zh", S3_ENDPOINT_URL=store):
        time.sleep(seconds)  # what a measured time is made of
    models = [row.model for row in rows(database, MODELS)]
    changes = sum(one != other for one, other in pairwise(models))
    database.dispose()
    return {"microbatches a change of model": len(models) / max(changes, 1), "changes": float(changes)}


def interactive(the_farm: Farm, store: str, settings: Settings, database: Engine, times: int) -> Figures:
    before, waits = [], []
    with the_farm.worker(settings, GPU, "--models", backlog.MODEL, S3_ENDPOINT_URL=store):
        wait_until(lambda: count(database, PUBLISHED) > 0)
        for number in range(times):
            time.sleep(0.037 * (number % 5))  # at another moment of a microbatch each time
            job = submit(database, settings, backlog.MODEL, Tier.INTERACTIVE)
            wait_until(lambda job=job: rows(database, STARTED, job=job))  # type: ignore[misc]
            (found,) = rows(database, BEFORE, job=job)
            before.append(float(found.microbatches))
            waits.append(float(found.seconds))
    return {
        "microbatches before it, worst": max(before),
        "microbatches before it, median": median(before),
        "wait s, median": median(waits),
        "wait s, worst": max(waits),
    }


def submit(database: Engine, settings: Settings, model: str, tier: Tier, count: int = 1) -> Any:
    fields = {"prompt": "一只猫", "model": model, "width": 256, "height": 256, "steps": 20, "count": count}
    recipe = resolve(Draft.model_validate(fields), read(SHIPPED_CATALOG), model, root_seed=1)
    with transaction(database) as connection:
        job = jobs.submit(connection, tenants.ensure_tenant(connection, "user"), recipe, tier=tier)
    Broker(settings).wake(model, job_id=job.id)
    return job.id


def count(database: Engine, statement: Any) -> int:
    with transaction(database) as connection:
        return int(connection.execute(statement).scalar_one() or 0)


def rows(database: Engine, statement: Any, **parameters: Any) -> list[Row[Any]]:
    with transaction(database) as connection:
        return list(connection.execute(statement, parameters))


WEIGH = text("UPDATE tenants SET weight = :weight WHERE id = :tenant")

PUBLISHED = text(f"SELECT sum(stored)::bigint FROM {EXACT} AS lanes")

# Images by tenant that were claimed since the last tenant submitted; all three had work.
SERVED = text("""
    SELECT tenants.name, count(*) AS images FROM images
    JOIN leases ON leases.id = images.lease_id
    JOIN jobs ON jobs.id = job_id JOIN tenants ON tenants.id = jobs.tenant_id
    WHERE leases.claimed_at > (
        SELECT max(first.at) FROM (SELECT min(created_at) AS at FROM jobs GROUP BY tenant_id) AS first)
    GROUP BY tenants.name
""")

# The first so many claimed images by tenant.
SERVED_FIRST = text("""
    SELECT tenants.name, count(*) AS images FROM (
        SELECT images.job_id FROM images JOIN leases ON leases.id = images.lease_id
        ORDER BY leases.claimed_at, leases.id LIMIT :images) AS image
    JOIN jobs ON jobs.id = job_id JOIN tenants ON tenants.id = jobs.tenant_id GROUP BY tenants.name
""")

FIRST_WAIT = text("""
    SELECT extract(epoch FROM min(images.started_at) - min(jobs.created_at)) AS seconds
    FROM images JOIN jobs ON jobs.id = job_id JOIN tenants ON tenants.id = tenant_id WHERE tenants.name = 'b'
""")

MODELS = text("""
    SELECT lanes.model FROM leases JOIN images ON images.id = leases.image_ids[1]
    JOIN lanes ON lanes.id = images.lane_id WHERE leases.started_at IS NOT NULL ORDER BY leases.started_at
""")

STARTED = text("SELECT FROM jobs WHERE id = :job AND started_at IS NOT NULL")

BEFORE = text("""
    SELECT (SELECT count(*) FROM leases WHERE leases.started_at > jobs.created_at
                AND leases.started_at < jobs.started_at) AS microbatches,
           extract(epoch FROM jobs.started_at - jobs.created_at) AS seconds
    FROM jobs WHERE id = :job
""")
