"""How long a worker waits for its next microbatch. Each side times claims of 8 images in a database with so many queued
images of four tenants; after each claim its images are started and published, which is not timed. `after 300k claims`
is the million after 300,000 other images were claimed and published: every claim starts at dead rows and index entries.
`behind a paused million` is 10,000 waiting beside a batch of a million older ones that is paused; `behind 100k backing
off` the same beside 100,000 older ones that wait for another attempt. `10k under an old snapshot` is 10,000
waiting after 100,000 claims during which another transaction kept its snapshot, like that of a `pg_dump`: no dead
version of a row could be removed. `one tenant` and `fifty tenants` are 50 workers that claim at once and do nothing
else: they find the images of one tenant, or as many of fifty.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median

import psycopg
from sqlalchemy import Engine, text

from bench.harness import backlog
from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.accounts import tenants
from common.batches import lifecycle as batches
from common.db import connect, new_id, transaction
from common.enums import ImageState, Tier
from common.queue import lanes, leases
from common.queue.claim import Microbatch, Offer
from common.queue.leases import Outcome
from common.storage import image_key, sha256
from worker.render.claimer import Claimer

TENANTS = ("a", "b", "c", "d")
CAPACITY = 8
CLAIMERS = 50
THREADS = 8
BASE = "10k"
OLD_SNAPSHOT = "10k under an old snapshot"
GOALS = (
    Goal("100k", BASE, "claim p50 ms", at_most=1.3),
    Goal("1M", BASE, "claim p50 ms", at_most=1.3),
    Goal("1M, after 300k claims", BASE, "claim p50 ms"),
    Goal("10k behind a paused million", BASE, "claim p50 ms", at_most=1.3),
    Goal("10k behind 100k backing off", BASE, "claim p50 ms", at_most=1.3),
    Goal(OLD_SNAPSHOT, BASE, "claim p50 ms", at_most=1.5),
    Goal("one tenant", "fifty tenants", "claims/s", at_least=0.8),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    scale = 50 if options.quick else 1
    times = 40 if options.quick else 300
    with farm() as the_farm, ExitStack() as held:
        databases = {
            BASE: waiting(the_farm, "small", 10_000),
            "100k": waiting(the_farm, "medium", 100_000 // scale),
            "1M": waiting(the_farm, "large", 1_000_000 // scale),
            "1M, after 300k claims": after_claims(the_farm, 1_000_000 // scale, 300_000 // scale),
            "10k behind a paused million": behind_a_pause(the_farm, 1_000_000 // scale),
            "10k behind 100k backing off": behind_backing_off(the_farm, 100_000 // scale),
            OLD_SNAPSHOT: under_an_old_snapshot(the_farm, 10_000 if options.quick else 100_000, held),
        }
        seconds = 3 if options.quick else 10
        names = iter(f"contended_{number}" for number in range(1000))
        yield {
            **{side: timed(database, times) for side, database in databases.items()},
            "one tenant": lambda: at_once(the_farm, next(names), 1, seconds),
            "fifty tenants": lambda: at_once(the_farm, next(names), 50, seconds),
        }
        held.close()
        for database in databases.values():
            database.dispose()


def timed(database: Engine, times: int) -> Callable[[], Figures]:
    def run() -> Figures:
        work(database, 20)  # warm up connections and plans
        found = sorted(work(database, times))
        return {"claim p50 ms": 1000 * median(found), "claim p95 ms": 1000 * found[int(0.95 * len(found))]}

    return run


def work(database: Engine, times: int, capacity: int = CAPACITY) -> list[float]:
    """Seconds of each claim by one worker, COMMIT and charges included."""
    claimer, offer = Claimer(new_id(), database), Offer(new_id(), {backlog.MODEL: capacity})
    took = []
    for number in range(times):
        began = time.perf_counter()
        microbatch = claimer.claim(offer, new_id(), 60)
        claimer.collect()
        took.append(time.perf_counter() - began)
        assert microbatch
        finish(database, microbatch)
        if number % 300 == 0:  # as the sweep does every few seconds
            with transaction(database) as connection:
                lanes.count(connection)
    return took


def finish(database: Engine, microbatch: Microbatch) -> None:
    with transaction(database) as connection:
        leases.start(connection, microbatch)
    outcomes = [
        Outcome(image.id, ImageState.STORED, image_key(image.job_id, image.index, microbatch.lease_id, "png"), NONE, 0)
        for image in microbatch.images
    ]
    with transaction(database) as connection:
        leases.publish(connection, microbatch.lease_id, outcomes)


def at_once(the_farm: Farm, name: str, tenants: int, seconds: float) -> Figures:
    """50 workers that claim for so long, on a database of their own."""
    settings = the_farm.new_database(name)
    database = connect(settings, pool=CLAIMERS, pool_timeout_s=60, keeps_plans=True)
    for number in range(tenants):
        backlog.fill(database, f"tenant {number}", AT_ONCE_IMAGES // tenants)
    backlog.vacuum(database)
    for runs_s in (1, seconds):  # the first time opens connections
        until = time.perf_counter() + runs_s
        with ThreadPoolExecutor(CLAIMERS) as workers:
            claimed = sum(workers.map(lambda _: claim_until(database, until), range(CLAIMERS)))  # noqa: B023
    database.dispose()
    return {"claims/s": claimed / seconds}


def claim_until(database: Engine, until: float) -> int:
    claimer, offer, claimed = Claimer(new_id(), database), Offer(new_id(), {backlog.MODEL: CAPACITY}), 0
    while time.perf_counter() < until:
        assert claimer.claim(offer, new_id(), 600)
        claimer.collect()
        claimed += 1
    return claimed


def waiting(the_farm: Farm, name: str, images: int) -> Engine:
    database = connect(the_farm.new_database(name), pool=1, statement_timeout_s=600, keeps_plans=True)
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
    database = connect(the_farm.new_database("paused"), pool=1, statement_timeout_s=600, keeps_plans=True)
    batch_id = backlog.fill(database, "a", images)
    with transaction(database) as connection:
        batches.pause(connection, batch_id, tenants.ensure_tenant(connection, "a"))
    fill_for_all(database, 10_000)
    backlog.vacuum(database)
    return database


def behind_backing_off(the_farm: Farm, images: int) -> Engine:
    database = connect(the_farm.new_database("backing_off"), pool=1, statement_timeout_s=600, keeps_plans=True)
    for tenant in TENANTS:
        backlog.fill(database, tenant, images // len(TENANTS), Tier.BULK)
    with transaction(database) as connection:
        connection.execute(BACK_OFF)
    fill_for_all(database, 10_000)
    backlog.vacuum(database)
    return database


def under_an_old_snapshot(the_farm: Farm, claimed: int, held: ExitStack) -> Engine:
    """After so many claims by some workers. The snapshot stays until the end of the bench."""
    settings = the_farm.new_database("snapshot")
    database = connect(settings, pool=THREADS, statement_timeout_s=600, keeps_plans=True)
    fill_for_all(database, 10_000 + claimed * CAPACITY)
    backlog.vacuum(database)
    other = held.enter_context(psycopg.connect(settings.database_url.get_secret_value()))
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    other.execute("SELECT count(*) FROM tenants")
    with ThreadPoolExecutor(THREADS) as workers:
        list(workers.map(lambda _: work(database, claimed // THREADS), range(THREADS)))
    return database


NONE = sha256(b"")
AT_ONCE_IMAGES = 200_000  # more than 50 workers claim meanwhile

BACK_OFF = text("UPDATE images SET not_before = now() + interval '1 day'")
