"""The load of benches: submit jobs, wait for them, and read the throughput from the database, by its clock alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from statistics import fmean
from typing import Any

import httpx
from sqlalchemy import Engine, text

from bench.harness.farm import wait_until
from common.db import transaction

CLIENTS = 8
COLOURS = ("红", "黄", "蓝", "绿", "紫")
SHAPES = ("圆形", "正方形", "三角形", "星形", "心形")


def now(database: Engine) -> datetime:
    with transaction(database) as connection:
        moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return moment


def submit(url: str, key: str, images: int, per_job: int = 4, **recipe: Any) -> None:
    """Submit jobs of a few images each over HTTP, from several clients."""

    def post(number: int) -> None:
        prompt = f"{COLOURS[number % 5]}色的{SHAPES[number // 5 % 5]}"
        body = {"prompt": prompt, "count": min(per_job, images - number * per_job), "seed": number * per_job, **recipe}
        client.post("/v1/jobs", json=body).raise_for_status()

    headers = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        list(clients.map(post, range(-(-images // per_job))))


def wait_until_done(database: Engine, seconds: float) -> None:
    """Wait until no job is open."""

    def is_done() -> bool:
        with transaction(database) as connection:
            return connection.execute(text("SELECT FROM jobs WHERE finished_at IS NULL LIMIT 1")).first() is None

    wait_until(is_done, seconds=seconds)


def steady(database: Engine, since: datetime) -> dict[str, float]:
    """Images a second that became visible, of the microbatches that were claimed since then.

    A tenth of the microbatches is left out at either end, where not every worker is busy.
    """
    with transaction(database) as connection:
        leases = connection.execute(PUBLISHED, {"since": since}).all()
    ends = [(lease.ended.timestamp(), lease.images) for lease in leases]
    return {"images/s": rate(ends), "images a microbatch": fmean(images for _, images in ends)}


def stored(database: Engine, since: datetime) -> int:
    """The images that were claimed since then and published."""
    with transaction(database) as connection:
        return sum(lease.images for lease in connection.execute(PUBLISHED, {"since": since}))


def rate(ends: Sequence[tuple[float, int]]) -> float:
    """Images a second of (time, images) in the order of time, without the first and the last tenth."""
    margin = max(len(ends) // 10, 1)
    kept = ends[margin:-margin]
    return sum(images for _, images in kept[1:]) / (kept[-1][0] - kept[0][0])


PUBLISHED = text("""
    SELECT ended_at AS ended, cardinality(image_ids) AS images FROM leases
    WHERE claimed_at > :since AND outcome = 'published' ORDER BY ended_at
""")
