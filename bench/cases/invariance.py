"""Whether company shows in a picture (promise P9). mini-zh paints one recipe alone, then between other prompts in calls
of two and eight, in another place of each, with two seeds; a level is one of the 256 that a colour has. Every round
does the same, so a median of 1 says that no round saw more.
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

COMPANY = ("蓝色的正方形，白色背景", "黄色的星形", "一个绿色的三角形，黑色背景")
LEVELS, MOVED = "levels at most", "% of bytes moved"

GOALS = tuple(Goal(scheduler, None, LEVELS, at_most=1) for scheduler in SCHEDULERS)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    device = "cpu" if options.device == "stub" else options.device
    paints = registry.load(catalog.read(SHIPPED_CATALOG).get("mini-zh"), device, threads=1)
    schedulers = ("ddim", "lms", "pndm") if options.quick else SCHEDULERS
    seeds, sizes = ((1,), (2,)) if options.quick else ((1, 2), (2, 8))
    yield {scheduler: partial(moved, paints, scheduler, seeds, sizes) for scheduler in schedulers}
    paints.close()


def moved(paints: Pipeline, scheduler: str, seeds: tuple[int, ...], sizes: tuple[int, ...]) -> Figures:
    differences = []
    for seed, size in product(seeds, sizes):
        one = stroke(paints, "红色的圆形", scheduler, seed)
        (alone,) = painted(paints, [one])
        company = [stroke(paints, COMPANY[i % len(COMPANY)], scheduler, seed + i) for i in range(size - 1)]
        place = seed % size
        among = painted(paints, [*company[:place], one, *company[place:]])[place]
        differences.append(np.abs(alone.astype(int) - among))
    found = np.stack(differences)
    return {LEVELS: float(found.max()), MOVED: float((found > 0).mean() * 100)}


def stroke(paints: Pipeline, prompt: str, scheduler: str, seed: int) -> ImageRequest:
    model = paints.model
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


def painted(paints: Pipeline, strokes: list[ImageRequest]) -> list[np.ndarray]:
    pictures = paints.generate(strokes, lambda step, steps: None)
    return [picture.pixels for picture in pictures if isinstance(picture, RenderedImage)]
