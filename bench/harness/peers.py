"""`python -m bench.harness.peers`:

what one would write first in place of a farm, as a Celery worker on the same servers.

    naive    a message a picture: paint it, encode it with Pillow, upload it, write its row; then the next message
    serial   a message for eight: paint them in one call, then encode (with our encoder), upload and write row by row

Neither has a lease, a retry, a fence, a cancellation or a fair share. A picture alone is given an eighth of the time of
a microbatch, which flatters the naive one: a real GPU takes longer. Their rows say when which picture was there.
"""

import io
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import boto3
import psycopg
from botocore.config import Config
from celery import Celery
from PIL import Image

from common.catalog import catalog
from common.config import SHIPPED_CATALOG, Settings
from common.recipes.recipe import Draft, Recipe, resolve
from worker.pipelines import stub
from worker.pipelines.base import ImageRequest, RenderedImage
from worker.render.encode import encode

MODEL, STEPS, MICROBATCH = "zh-v0", 20, 8
RECIPE: dict[str, Any] = {"model": MODEL, "width": 512, "height": 512, "steps": STEPS}
CATALOG = catalog.read(SHIPPED_CATALOG)
TABLE = "CREATE TABLE IF NOT EXISTS peer_pictures (key text PRIMARY KEY, stored_at timestamptz NOT NULL)"
INSERT = "INSERT INTO peer_pictures VALUES (%s, clock_timestamp())"
MOMENTS = "SELECT stored_at FROM peer_pictures WHERE key LIKE %s ORDER BY stored_at"


def recipe(seed: int = 0) -> Recipe:
    draft = Draft.model_validate({"prompt": "红色的圆形", **RECIPE})
    return resolve(draft, CATALOG, MODEL, root_seed=seed)


def painted(gpu: stub.StubPipeline, seeds: Sequence[int]) -> list[RenderedImage]:
    the_recipe = recipe()
    pictures = gpu.generate([ImageRequest(the_recipe, seed) for seed in seeds], lambda step, steps: None)
    return [picture for picture in pictures if isinstance(picture, RenderedImage)]


def app_of(broker: str) -> Celery:
    app = Celery("peers", broker=broker, set_as_current=False)
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
    return app


def main() -> None:
    settings, microbatch_s = Settings(), float(os.environ["BENCH_MICROBATCH_S"])
    app = app_of(settings.redis_url.get_secret_value())
    model = CATALOG.get(MODEL)
    one, eight = (
        stub.StubPipeline(model, microbatch_s / STEPS / MICROBATCH),
        stub.StubPipeline(model, microbatch_s / STEPS),
    )
    database = psycopg.connect(settings.database_url.get_secret_value(), autocommit=True)
    secret = settings.s3_secret_key
    store = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )

    def keep(name: str, data: bytes) -> None:
        store.put_object(Bucket=settings.s3_bucket, Key=name, Body=data, ContentType="image/png")
        database.execute(INSERT, [name])

    @app.task(name="naive")
    def naive(run: str, seed: int) -> None:
        (picture,) = painted(one, [seed])
        file = io.BytesIO()
        Image.fromarray(picture.pixels).save(file, "png")
        keep(f"naive/{run}/{seed}.png", file.getvalue())

    @app.task(name="serial")
    def serial(run: str, seeds: list[int]) -> None:
        for seed, picture in zip(seeds, painted(eight, seeds), strict=True):
            keep(f"serial/{run}/{seed}.png", encode(picture.pixels, "png", {}))

    app.worker_main(["worker", "--pool", "solo", "--queues", "peers", "--loglevel", "warning"])


def moments(database_url: str, kind: str, run: str) -> list[datetime]:
    """When the pictures of this run were there."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(MOMENTS, [f"{kind}/{run}/%"])]


def make_table(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLE)


if __name__ == "__main__":
    main()
