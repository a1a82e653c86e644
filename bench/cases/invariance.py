"""Whether the other images of a call change an image (promise P9). mini-zh renders one recipe alone, then between other
prompts in calls of two and eight, at another position of each, with two seeds; a level is one of the 256 of a colour.
Every round does the same, so a median of 1 means that no round had more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import numpy as np

from bench.harness.measurement import Figures, Goal, Options, Sides
from common.catalog import catalog
from common.catalog.catalog import SCHEDULERS
from common.config import SHIPPED_CATALOG
from common.recipes.recipe import Recipe
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest, Pipeline, RenderedImage

NEIGHBOURS = ("蓝色的正方形，白色背景", "黄色的星形", "一个绿色的三角形，黑色背景")
LEVELS, MOVED = "levels at most", "% of bytes moved"

GOALS = tuple(Goal(scheduler, None, LEVELS, at_most=1) for scheduler in SCHEDULERS)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    device = "cpu" if options.device == "stub" else options.device
    pipeline = registry.load(catalog.read(SHIPPED_CATALOG).get("mini-zh"), device, threads=1)
    schedulers = ("ddim", "lms", "pndm") if options.quick else SCHEDULERS
    seeds, sizes = ((1,), (2,)) if options.quick else ((1, 2), (2, 8))
    yield {scheduler: partial(differences, pipeline, scheduler, seeds, sizes) for scheduler in schedulers}
    pipeline.close()


def differences(pipeline: Pipeline, scheduler: str, seeds: tuple[int, ...], sizes: tuple[int, ...]) -> Figures:
    found = []
    for seed, size in product(seeds, sizes):
        one = request(pipeline, "红色的圆形", scheduler, seed)
        (alone,) = rendered(pipeline, [one])
        neighbours = [request(pipeline, NEIGHBOURS[i % len(NEIGHBOURS)], scheduler, seed + i) for i in range(size - 1)]
        position = seed % size
        among = rendered(pipeline, [*neighbours[:position], one, *neighbours[position:]])[position]
        found.append(np.abs(alone.astype(int) - among))
    levels = np.stack(found)
    return {LEVELS: float(levels.max()), MOVED: float((levels > 0).mean() * 100)}


def request(pipeline: Pipeline, prompt: str, scheduler: str, seed: int) -> ImageRequest:
    model = pipeline.model
    recipe = Recipe(
        prompt=prompt,
        negative_prompt="",
        model=model.name,
        width=model.width,
        height=model.height,
        steps=model.steps,
        scheduler=scheduler,
        guidance=model.guidance,
        seeds=(seed,),
        mode="text2image",
        format="png",
    )
    return ImageRequest(recipe, seed)


def rendered(pipeline: Pipeline, requests: list[ImageRequest]) -> list[np.ndarray]:
    images = pipeline.generate(requests, lambda step, steps: None)
    return [image.pixels for image in images if isinstance(image, RenderedImage)]
