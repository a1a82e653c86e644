"""What it costs to reuse pictures. A batch of 100,000 prompts is expanded with `reuse` in a database that has 100,000
pictures, and in one that has a million: all of them are found there, so all of its images are linked and nothing is
rendered. `rendered` is the expansion of the same batch without `reuse`: its images wait for a worker.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from sqlalchemy import Engine, text

from bench.harness.backlog import MODEL, fill, planned, vacuum
from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.batches.plan import Plan
from common.db import connect, new_id, transaction
from common.queue import workers
from common.queue.reuse import reuse_key
from common.recipes.picture_key import DrawnWith

DRAWN_WITH = DrawnWith("some weights", {}, "a class")
GOALS = (Goal("many stored", "few stored", "images/s", at_least=0.8),)
KEYS = 10_000  # of pictures, marked at once


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    images, few, many = (2_000, 2_000, 20_000) if options.quick else (100_000, 100_000, 1_000_000)
    numbers = count()
    with farm() as the_farm:
        small, large = (stored(the_farm, name, size, images) for name, size in (("few", few), ("many", many)))
        yield {
            "rendered": lambda: expand(large, f"rendered {next(numbers)}", images, reuse=False),
            "few stored": lambda: expand(small, "bench", images, reuse=True),
            "many stored": lambda: expand(large, "bench", images, reuse=True),
        }
        small.dispose()
        large.dispose()


def expand(database: Engine, tenant: str, images: int, *, reuse: bool) -> Figures:
    """The rate; raises AssertionError if not all were linked, or any were without being asked for."""
    began = time.perf_counter()
    batch_id = fill(database, tenant, images, per_job=1, reuse=reuse)
    seconds = time.perf_counter() - began
    with transaction(database) as connection:
        linked = connection.execute(LINKED, {"batch": batch_id}).scalar_one()
        assert linked == (images if reuse else 0), f"{linked} of {images} images were linked"
        connection.execute(CLEAR_IMAGES, {"batch": batch_id})
        connection.execute(CLEAR_JOBS, {"batch": batch_id})
    vacuum(database)
    return {"images/s": images / seconds, "linked": linked}


def stored(the_farm: Farm, name: str, pictures: int, wanted: int) -> Engine:
    """A database of a tenant with so many pictures; the first ones are those that its next batch asks for."""
    database = connect(the_farm.new_database(name), pool=2, statement_timeout_s=900)
    batch_id = fill(database, "bench", pictures, per_job=1)
    with transaction(database) as connection:
        facts = {MODEL: {"weights": DRAWN_WITH.weights or "", "class": DRAWN_WITH.picture_class}}
        worker = workers.Worker(new_id(), "bench", {}, [MODEL], picture_classes=facts)
        workers.heartbeat(connection, worker, ready=True)
        connection.execute(STORE, {"batch": batch_id})
        keys = [DRAWN_WITH.key(job.recipe, 0) for job in planned(plan_of(database, batch_id), wanted)]
        for start in range(0, wanted, KEYS):
            some = keys[start : start + KEYS]
            named = {"batch": batch_id, "positions": list(range(start, start + len(some))), "keys": some}
            connection.execute(NAME, named | {"class": DRAWN_WITH.picture_class})
    vacuum(database)
    return database


def plan_of(database: Engine, batch_id: object) -> Plan:
    with transaction(database) as connection:
        return Plan.model_validate(connection.execute(PLAN, {"batch": batch_id}).scalar_one())


PLAN = text("SELECT plan FROM batches WHERE id = :batch")

STORE = text("""
    UPDATE images SET state = 'stored', finished_at = now(), sha256 = repeat('0', 64), bytes = 400000,
        key = 'images/' || job_id || '/0-' || gen_random_uuid() || '.png',
        picture_key = sha256(cast(images.id AS text)::bytea), reuse_key = gen_random_uuid()
    FROM jobs WHERE jobs.id = images.job_id AND jobs.batch_id = :batch
""")

NAME = text(f"""
    UPDATE images SET picture_key = decode(wanted.picture_key, 'hex'),
        reuse_key = {reuse_key("jobs.tenant_id", "wanted.picture_key", "cast(:class AS text)")}
    FROM jobs JOIN unnest(cast(:positions AS bigint[]), cast(:keys AS text[])) AS wanted(position, picture_key)
        ON jobs.position = wanted.position
    WHERE jobs.id = images.job_id AND jobs.batch_id = :batch
""")

LINKED = text("SELECT count(*) FROM images JOIN jobs ON jobs.id = job_id WHERE batch_id = :batch AND reused")

CLEAR_IMAGES = text("DELETE FROM images WHERE job_id IN (SELECT id FROM jobs WHERE batch_id = :batch)")

CLEAR_JOBS = text("DELETE FROM jobs WHERE batch_id = :batch")
