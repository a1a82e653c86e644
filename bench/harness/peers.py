"""`python -m bench.harness.peers`: the simplest Celery workers that could replace a farm, on the same servers.

    naive    a message an image: render it, encode it with Pillow, upload it, write its row; then the next message
    serial   a message for eight: render them in one call, then encode (with our encoder), upload and write row by row

Neither has leases, retries, a fence, cancellation or fair shares. A single image takes an eighth of the time of a
microbatch, which favours the naive one: a real GPU takes longer. The rows record when each image was stored.
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
TABLE = "CREATE TABLE IF NOT EXISTS peer_images (key text PRIMARY KEY, stored_at timestamptz NOT NULL)"
INSERT = "INSERT INTO peer_images VALUES (%s, clock_timestamp())"
MOMENTS = "SELECT stored_at FROM peer_images WHERE key LIKE %s ORDER BY stored_at"


def recipe(seed: int = 0) -> Recipe:
    draft = Draft.model_validate({"prompt": "红色的圆形", **RECIPE})
    return resolve(draft, CATALOG, MODEL, root_seed=seed)


def rendered(gpu: stub.StubPipeline, seeds: Sequence[int]) -> list[RenderedImage]:
    the_recipe = recipe()
    images = gpu.generate([ImageRequest(the_recipe, seed) for seed in seeds], lambda step, steps: None)
    return [image for image in images if isinstance(image, RenderedImage)]


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

    def store_image(name: str, data: bytes) -> None:
        store.put_object(Bucket=settings.s3_bucket, Key=name, Body=data, ContentType="image/png")
        database.execute(INSERT, [name])

    @app.task(name="naive")
    def naive(run: str, seed: int) -> None:
        (image,) = rendered(one, [seed])
        file = io.BytesIO()
        Image.fromarray(image.pixels).save(file, "png")
        store_image(f"naive/{run}/{seed}.png", file.getvalue())

    @app.task(name="serial")
    def serial(run: str, seeds: list[int]) -> None:
        for seed, image in zip(seeds, rendered(eight, seeds), strict=True):
            store_image(f"serial/{run}/{seed}.png", encode(image.pixels, "png", {}))

    app.worker_main(["worker", "--pool", "solo", "--queues", "peers", "--loglevel", "warning"])


def moments(database_url: str, kind: str, run: str) -> list[datetime]:
    """When the images of this run were stored, in order."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(MOMENTS, [f"{kind}/{run}/%"])]


def make_table(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(TABLE)


if __name__ == "__main__":
    main()
