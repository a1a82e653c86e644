"""What it costs to delete, and what other clients notice. `pictures` is a batch of 20,000 stored pictures of 40 kB on
the local farm's image store; `rows` is one of a million images on a store that takes no time. Each is deleted with one
request, by one control worker; other clients list jobs, list batches and submit jobs of their own, for ten seconds
before it and then until nothing is left. `left` counts the rows that are not of the others' jobs, and the objects in
the bucket: there must be none.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import httpx
from sqlalchemy import Engine, text

from bench.cases.million import Others, process_of
from bench.harness.backlog import PER_JOB, fill, vacuum
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.config import Settings
from common.db import connect, transaction
from common.storage import Storage

ROUNDS = 1  # there is nothing to compare
BEFORE_S = 10
PICTURE = bytes(40_000)
PUTS = 8  # at once
GOALS = (
    Goal("pictures", measure="left"),
    Goal("rows", measure="left"),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    pictures, rows = (400, 4_000) if options.quick else (20_000, 1_000_000)
    with farm() as the_farm, the_farm.instant_store() as instant:
        in_memory = the_farm.new_database("rows").model_copy(
            update={"s3_endpoint_url": instant, "s3_public_url": instant}
        )
        if mark := Storage(the_farm.settings_of("rows")).read_mark():
            Storage(in_memory).write_mark(mark, replace=True)
        yield {
            "pictures": lambda: delete(the_farm, the_farm.settings, pictures, has_bytes=True),
            "rows": lambda: delete(the_farm, in_memory, rows, has_bytes=False),
        }


def delete(the_farm: Farm, settings: Settings, images: int, *, has_bytes: bool) -> Figures:
    database = connect(settings, pool=2)
    headers = {"Authorization": f"Bearer {the_farm.key(database)}"}
    with (
        the_farm.api(settings) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        path = f"/v1/batches/{stored_batch(database, images)}"
        if has_bytes:
            put_all(database, Storage(settings, connections=PUTS))
        before, meanwhile = Others(client, process_of(url)), Others(client, process_of(url))
        with the_farm.control(settings):
            with before:
                time.sleep(BEFORE_S)
            with meanwhile:
                began = time.perf_counter()
                client.delete(path).raise_for_status()
                answered = time.perf_counter() - began
                wait_until(lambda: is_gone(client.get(path)), seconds=3600)
                gone = time.perf_counter() - began
    with transaction(database) as connection:
        left = int(connection.execute(LEFT).scalar_one())
    if has_bytes:
        left += len(Storage(settings).list_objects("images/"))
    database.dispose()
    return {
        "gone, s": gone,
        "answered, ms": 1000 * answered,
        "images/s": images / gone,
        "left": left,
        **{f"{name} before": value for name, value in before.figures().items() if "p99" in name},
        **{f"{name} meanwhile": value for name, value in meanwhile.figures().items() if "p99" in name},
    }


def is_gone(answer: httpx.Response) -> bool:
    """Whether nothing is left of what was deleted."""
    assert answer.status_code == 410, answer.text
    return bool(answer.json()["tombstone"]["finished_at"])


def stored_batch(database: Engine, images: int) -> UUID:
    """A batch that has ended, all of whose images are stored; their bytes are not."""
    batch_id = fill(database, "bench", images)
    with transaction(database) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in STORE:
            connection.execute(text(statement), {"batch": batch_id})
    vacuum(database)
    return batch_id


def put_all(database: Engine, storage: Storage) -> None:
    with transaction(database) as connection:
        keys = connection.execute(text("SELECT key FROM images WHERE key IS NOT NULL")).scalars().all()
    with ThreadPoolExecutor(PUTS) as pool:
        list(pool.map(lambda key: storage.put(key, PICTURE, "image/png"), keys))


STORE = (
    """
    UPDATE images SET state = 'stored', attempts = 1, lease_id = images.id, finished_at = now(),
        sha256 = repeat('0', 64), key = 'images/' || job_id || '/' || index || '-' || images.id || '.png', bytes = 40000
    FROM jobs WHERE jobs.id = job_id AND jobs.batch_id = :batch
    """,
    "UPDATE jobs SET state = 'succeeded', open = 0, started_at = now(), finished_at = now() WHERE batch_id = :batch",
    "UPDATE lanes SET stored = open, open = 0 WHERE batch_id = :batch",
    "UPDATE batches SET finished_at = now() WHERE id = :batch",
)

# The rows of what was deleted, and what is to be deleted: the others submit jobs of one image, without a batch.
LEFT = text(f"""
    SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM jobs WHERE batch_id IS NOT NULL)
        + (SELECT count(*) FROM images JOIN jobs ON jobs.id = job_id WHERE jobs.count = {PER_JOB})
        + (SELECT count(*) FROM images WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = job_id))
        + (SELECT count(*) FROM lanes WHERE batch_id IS NOT NULL) + (SELECT count(*) FROM objects_to_delete)
""")
