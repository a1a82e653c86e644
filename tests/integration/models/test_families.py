"""Every model family through the farm: jobs submitted over HTTP give the images that diffusers rendered in 2022."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from common.catalog.catalog import read
from common.config import Settings
from tests.golden.make import HERE, RECIPES, SEED, STEPS
from tests.support import families
from tests.support.serving import serving
from tests.support.workers import until_published
from worker.render.worker import RenderWorker


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_every_family_renders_through_the_farm(settings: Settings, database: Engine, tmp_path: Path) -> None:
    catalog = families.catalog(tmp_path)
    own = settings.model_copy(update={"catalog": catalog, "device": "cpu", "torch_threads": 1, "drain_s": 5})
    with serving(own, database) as api, api.client() as client:
        jobs = {}
        for name, fields in RECIPES.items():
            recipe = {"model": name, "steps": STEPS, "seed": SEED, **fields}
            if recipe["negative_prompt"] == families.CATALOG.get(name).negative_prompt:
                del recipe["negative_prompt"]  # it is the model's own
            jobs[name] = client.post("/v1/jobs", json=recipe).json()
        worker = RenderWorker(own, read(catalog))
        try:
            worker.loop.run(60)
            until_published(worker)
        finally:
            worker.stop()
            worker.database.dispose()
        for name, job in jobs.items():
            ended = client.get(f"/v1/jobs/{job['id']}").json()
            assert ended["state"] == "succeeded", ended["error"]
            content = client.get(f"/v1/images/{ended['images'][0]['id']}/content", follow_redirects=True).content
            ours, theirs = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(content), golden(name)))
            assert np.abs(ours - theirs).max() <= 1


def golden(name: str) -> Path:
    return HERE / f"{name}.png"
