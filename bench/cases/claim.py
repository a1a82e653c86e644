"""How long a worker waits for its next microbatch. Each side times claims of 8 images in a database with so many queued
images of four tenants; after each claim its images are started and published, which is not timed. `after 300k claims`
is the million after 300,000 other images were claimed and published: every claim starts at dead rows and index entries.
`behind a paused million` is 10,000 waiting beside a batch of a million older ones that is paused; `behind 100k backing
off` the same beside 100,000 older ones that wait for another attempt.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from sqlalchemy import Engine, text

from bench.harness import backlog
from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.accounts import tenants
from common.batches import lifecycle as batches
from common.db import connect, new_id, transaction
from common.enums import ImageState, Tier
from common.queue import claim as claims
from common.queue import leases
from common.queue.claim import Offer
from common.queue.leases import Outcome
from common.storage import image_key, sha256

TENANTS = ("a", "b", "c", "d")
CAPACITY = 8
BASE = "10k"
GOALS = (
    Goal("100k", BASE, "claim p50 ms", at_most=1.3),
    Goal("1M", BASE, "claim p50 ms", at_most=1.3),
    Goal("1M, after 300k claims", BASE, "claim p50 ms"),
    Goal("10k behind a paused million", BASE, "claim p50 ms", at_most=1.3),
    Goal("10k behind 100k backing off", BASE, "claim p50 ms", at_most=1.3),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    scale = 50 if options.quick else 1
    times = 40 if options.quick else 300
    with farm() as the_farm:
        databases = {
            BASE: waiting(the_farm, "small", 10_000),
            "100k": waiting(the_farm, "medium", 100_000 // scale),
            "1M": waiting(the_farm, "large", 1_000_000 // scale),
            "1M, after 300k claims": after_claims(the_farm, 1_000_000 // scale, 300_000 // scale),
            "10k behind a paused million": behind_a_pause(the_farm, 1_000_000 // scale),
            "10k behind 100k backing off": behind_backing_off(the_farm, 100_000 // scale),
        }
        yield {side: timed(database, times) for side, database in databases.items()}
        for database in databases.values():
            database.dispose()


def timed(database: Engine, times: int) -> Callable[[], Figures]:
    def run() -> Figures:
        work(database, 20)  # warm up connections and plans
        found = sorted(work(database, times))
        return {"claim p50 ms": 1000 * median(found), "claim p95 ms": 1000 * found[int(0.95 * len(found))]}

    return run


def work(database: Engine, times: int, capacity: int = CAPACITY) -> list[float]:
    """Seconds of each claim, COMMIT included."""
    offer = Offer(new_id(), {backlog.MODEL: capacity})
    took = []
    for _ in range(times):
        began = time.perf_counter()
        with transaction(database) as connection:
            microbatch = claims.claim(connection, offer, new_id(), 60)
        took.append(time.perf_counter() - began)
        assert microbatch
        with transaction(database) as connection:
            leases.start(connection, microbatch)
        outcomes = [
            Outcome(
                image.id, ImageState.STORED, image_key(image.job_id, image.index, microbatch.lease_id, "png"), NONE, 0
            )
            for image in microbatch.images
        ]
        with transaction(database) as connection:
            leases.publish(connection, microbatch.lease_id, outcomes)
    return took


def waiting(the_farm: Farm, name: str, images: int) -> Engine:
    database = connect(the_farm.new_database(name), pool=1, statement_timeout_s=600)
    fill_for_all(database, images)
    backlog.vacuum(database)
    return database


def fill_for_all(database: Engine, images: int) -> None:
    for tenant in TENANTS:
        backlog.fill(database, tenant, images // len(TENANTS))


def after_claims(the_farm: Farm, images: int, claimed: int) -> Engine:
    database = waiting(the_farm, "bloated", images)
    work(database, claimed // 100, capacity=100)
    return database


def behind_a_pause(the_farm: Farm, images: int) -> Engine:
    database = connect(the_farm.new_database("paused"), pool=1, statement_timeout_s=600)
    batch_id = backlog.fill(database, "a", images)
    with transaction(database) as connection:
        batches.pause(connection, batch_id, tenants.ensure_tenant(connection, "a"))
    fill_for_all(database, 10_000)
    backlog.vacuum(database)
    return database


def behind_backing_off(the_farm: Farm, images: int) -> Engine:
    database = connect(the_farm.new_database("backing_off"), pool=1, statement_timeout_s=600)
    for tenant in TENANTS:
        backlog.fill(database, tenant, images // len(TENANTS), Tier.BULK)
    with transaction(database) as connection:
        connection.execute(BACK_OFF)
    fill_for_all(database, 10_000)
    backlog.vacuum(database)
    return database


NONE = sha256(b"")

BACK_OFF = text("UPDATE images SET not_before = now() + interval '1 day'")
