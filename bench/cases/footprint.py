"""How many bytes of the database an image takes that was rendered: all tables with their indexes, less what they take
before the first image. The images are claimed, eight at a time, started and published by the product's own statements,
and vacuumed ten times meanwhile, as autovacuum would. `4 images a job` and `1 image a job` are batches of such jobs.
`leases pruned` is after the days (30) that ended leases are kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text

from bench.cases.claim import CAPACITY, work
from bench.harness import backlog
from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.config import Settings
from common.db import connect, transaction
from common.maintenance import pruning
from common.schema import metadata

MEASURE = "bytes an image"
LARGE = ("images", "jobs", "leases")
GOALS = (Goal("4 images a job", measure=MEASURE, at_most=950), Goal("1 image a job", measure=MEASURE))


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    images = 2400 if options.quick else 16_000
    names = iter(f"footprint_{number}" for number in range(1000))
    with farm() as the_farm:
        yield {
            "4 images a job": measured(the_farm, names, images, 4),
            "1 image a job": measured(the_farm, names, images, 1),
        }


def measured(the_farm: Farm, names: Iterator[str], images: int, per_job: int) -> Callable[[], Figures]:
    def run() -> Figures:
        settings = the_farm.new_database(next(names))
        database = connect(settings, pool=1, statement_timeout_s=600)
        empty = sizes(database)
        backlog.fill(database, "bench", images, per_job=per_job)
        for _ in range(10):
            work(database, images // CAPACITY // 10)
            backlog.vacuum(database)
        grown = {table: size - empty[table] for table, size in sizes(database).items()}
        prune_leases(database, settings)
        pruned = sum(sizes(database).values()) - sum(empty.values())
        database.dispose()
        return {
            MEASURE: sum(grown.values()) / images,
            **{f"of {table}": grown[table] / images for table in LARGE},
            "of their indexes": grown["indexes"] / images,
            "leases pruned": pruned / images,
        }

    return run


def sizes(database: Engine) -> dict[str, int]:
    """Bytes of each table without its indexes, and of all indexes."""
    with database.connect() as connection:
        tables = {
            table: int(connection.execute(TABLE_BYTES, {"table": table}).scalar_one()) for table in metadata.tables
        }
        indexes = sum(connection.execute(INDEX_BYTES, {"table": table}).scalar_one() for table in metadata.tables)
    return {**tables, "indexes": int(indexes)}


def prune_leases(database: Engine, settings: Settings) -> None:
    rule = next(rule for rule in pruning.RULES if rule.table == "leases")
    rows = pruning.STEP_ROWS
    while rows == pruning.STEP_ROWS:
        with transaction(database) as connection:
            rows = pruning.step(connection, rule, settings.model_copy(update={"lease_days": 0}))
    backlog.vacuum(database)


TABLE_BYTES = text("SELECT pg_table_size(cast(:table AS regclass))")
INDEX_BYTES = text("SELECT pg_indexes_size(cast(:table AS regclass))")
