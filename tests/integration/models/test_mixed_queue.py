"""One worker, a queue of four families and three modes, and memory for two models: each image shows its own recipe."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine

from common.catalog.catalog import Model, read
from common.config import Settings
from tests.conformance.test_pipelines import generate, gradient, request_for, right_half
from tests.support.devices import LEVELS
from tests.support.serving import serving
from tests.support.twins import flux2, qwen_image, sdxl, z_image
from tests.support.workers import until_published
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest, Pipeline
from worker.render.worker import RenderWorker

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

TWINS = (sdxl, z_image, qwen_image, flux2)
MODES = ("text2image", "image2image", "inpaint")
STEPS, STRENGTH = 3, 0.7
FIELDS = (
    "source",
    "family",
    "description",
    "width",
    "height",
    "steps",
    "scheduler",
    "guidance",
    "guided",
    "token_limit",
)


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    entries = [twin.entry(twin.make(tmp_path / twin.NAME)) for twin in TWINS]
    return [replace(entry, microbatch=4, safety_checker=False, precision="fp32") for entry in entries]


@pytest.fixture
def own(settings: Settings, models: list[Model], tmp_path: Path) -> Settings:
    """Settings with a catalogue of the twins, and memory for the two largest."""
    lines = [f"default = {json.dumps(models[0].name)}"]
    for model in models:
        lines += [f"[models.{json.dumps(model.name)}]", 'licence = "none"', 'licence_url = ""', "microbatch = 4"]
        lines += [f"{name} = {json.dumps(getattr(model, name))}" for name in FIELDS]
        lines += ["safety_checker = false", 'precision = "fp32"']
    (tmp_path / "catalog.toml").write_text("\n".join(lines), "utf-8")
    sizes = sorted(sum((registry.model_components(model, "cpu") or {}).values()) for model in models)
    changes = {"catalog": tmp_path / "catalog.toml", "device": "cpu", "torch_threads": 1, "drain_s": 5}
    return settings.model_copy(update={**changes, "model_memory": sum(sizes[-2:]) + 1000})


@pytest.fixture
def worker(own: Settings) -> Iterator[RenderWorker]:
    made = RenderWorker(own, read(own.catalog))
    yield made
    made.stop()
    made.database.dispose()


def png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(client: httpx.Client, pixels: NDArray[Any]) -> str:
    answer = client.post("/v1/uploads", content=png(pixels), headers={"Content-Type": "image/png"})
    return str(answer.json()["id"])


def inputs(client: httpx.Client, mode: str, side: int) -> dict[str, Any]:
    if mode == "text2image":
        return {}
    mask = {"mask": upload(client, right_half(side, side).astype(np.uint8) * 255)} if mode == "inpaint" else {}
    return {"source": upload(client, gradient(side, side)), "strength": STRENGTH, **mask}


def submit(client: httpx.Client, model: Model, mode: str, prompt: str, seed: int) -> dict[str, Any]:
    fields = {"prompt": prompt, "model": model.name, "steps": STEPS, "seed": seed, "count": 2}
    answer = client.post("/v1/jobs", json={**fields, **inputs(client, mode, model.width)})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def render(worker: RenderWorker) -> None:
    while worker.loop.run(60):
        pass
    until_published(worker)


def pictures(client: httpx.Client, job: dict[str, Any]) -> list[NDArray[np.uint8]]:
    ended = client.get(f"/v1/jobs/{job['id']}").json()
    assert ended["state"] == "succeeded", ended["error"]
    links = [f"/v1/images/{image['id']}/content" for image in ended["images"]]
    return [np.asarray(Image.open(io.BytesIO(client.get(link, follow_redirects=True).content))) for link in links]


def alone(pipeline: Pipeline, mode: str, prompt: str, seed: int) -> ImageRequest:
    strength = {} if mode == "text2image" else {"strength": STRENGTH}
    return request_for(pipeline, prompt, seed, steps=STEPS, mode=mode, **strength)


def test_each_image_of_a_mixed_queue_shows_its_own_recipe(
    own: Settings, database: Engine, models: list[Model], worker: RenderWorker
) -> None:
    with serving(own, database) as api, api.client() as client:
        wanted = [
            (model, mode, f"第{number}幅红色的圆形", 10 * number)
            for number, (mode, model) in enumerate((mode, model) for mode in MODES for model in models)
        ]
        jobs = [submit(client, *recipe) for recipe in wanted]
        render(worker)
        assert len(worker.models.resident) < len(models)
        first = [pictures(client, job) for job in jobs]

        again = [submit(client, *recipe) for recipe in wanted]
        render(worker)
        for before, job in zip(first, again, strict=True):
            assert all(map(np.array_equal, before, pictures(client, job)))
    for model in models:
        pipeline = registry.load(model, "cpu", threads=1)
        for (of_model, mode, prompt, seed), drawn in zip(wanted, first, strict=True):
            if of_model is not model:
                continue
            for image, pixels in enumerate(drawn):
                (expected,) = generate(pipeline, alone(pipeline, mode, prompt, seed + image))
                assert np.abs(pixels.astype(int) - expected).max() <= LEVELS
        pipeline.close()
    distinct = {pixels.tobytes() for drawn in first for pixels in drawn}
    assert len(distinct) == 2 * len(wanted)
