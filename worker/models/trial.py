"""The trial picture: a small picture that tells whether this host renders a model as it should. Never stored.

It has a fixed prompt and seed, the model's smallest size and two steps. A thumbnail of it is compared with that of the
first worker of this class, which is in Postgres. Knows no quarantine: it says what is at fault. Only for the render
thread.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine as Database

from common.catalog.catalog import Model
from common.db import transaction
from common.errors import Interrupted, RenderFailed, Unavailable
from common.log import log_event
from common.queue import quarantines
from common.recipes.recipe import Recipe, canonical_json
from common.sentences import Sentence
from worker.models import sentence
from worker.pipelines.base import TRIAL_PROMPT, DeviceLost, ImageRequest, OnStep, Pipeline, RenderedImage

SEED = 1
STEPS = 2
SIDE = 16  # of a thumbnail, in pixels
TOLERANCE = 8  # levels by which a thumbnail may differ: devices of one class give the same within less than one


@dataclass(frozen=True)
class Fault:
    """Why a trial picture is bad. `known_picture`: the digest of the one that it differs from."""

    why: Sentence
    model: str
    known_picture: str | None = None


class Trials:
    def __init__(self, name: str, worker_class: Mapping[str, Any], database: Database) -> None:
        """`name` is the worker's."""
        self._name = name
        self._class = worker_class
        self._database = database

    def fault(self, pipeline: Pipeline, on_step: OnStep = lambda step, steps: None) -> Fault | None:
        """Render the trial picture; None if it is good. Raises DeviceLost, and Interrupted if `on_step` does.

        A good one becomes the known one if there is none. While Postgres is away nothing is compared.
        """
        model = pipeline.model.name
        try:
            found = thumbnail(_render(pipeline, on_step))
        except (DeviceLost, Interrupted):
            raise
        except Exception as error:
            log_event("trial_failed", exc_info=True, model=model)
            reason = error.message if isinstance(error, RenderFailed) else type(error).__name__
            return Fault(sentence("trial_failed", model=model, error=reason), model)
        digest = self._digest(pipeline)
        with suppress(Unavailable), transaction(self._database) as connection:
            known = quarantines.record_picture(connection, digest, model, self._name, found)
            if differ(known, found):
                return Fault(sentence("trial_differs", model=model), model, digest)
        return None

    def is_proven(self, pipeline: Pipeline) -> bool:
        """Whether a worker of this class has rendered the trial picture: then the model is not at fault."""
        with suppress(Unavailable), transaction(self._database) as connection:
            return quarantines.known_picture(connection, self._digest(pipeline)) is not None
        return False

    def _digest(self, pipeline: Pipeline) -> str:
        """Of all that decides the picture."""
        model = pipeline.model
        own = {"source": model.source, "revision": pipeline.revision, "recipe": recipe(model).content}
        return hashlib.sha256(canonical_json({**self._class, **pipeline.details, **own}).encode()).hexdigest()


def recipe(model: Model) -> Recipe:
    """Of the trial picture. A compiled model renders it in its usual size: each other one is compiled for minutes."""
    return Recipe(
        prompt=TRIAL_PROMPT,
        negative_prompt=model.negative_prompt,
        model=model.name,
        width=model.width if model.compile else model.min_side,
        height=model.height if model.compile else model.min_side,
        steps=STEPS,
        scheduler=model.scheduler,
        guidance=model.guidance,
        seeds=(SEED,),
        mode="text2image",
        format="png",
    )


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """SIDE × SIDE × RGB: the mean of each block of pixels."""
    height, width = (side // SIDE for side in pixels.shape[:2])
    blocks = pixels[: height * SIDE, : width * SIDE].reshape(SIDE, height, SIDE, width, 3)
    return bytes(blocks.mean(axis=(1, 3)).round().astype(np.uint8).tobytes())


def differ(known: bytes, found: bytes) -> bool:
    """Whether two thumbnails show different pictures."""
    first, second = (np.frombuffer(picture, np.uint8).astype(np.int16) for picture in (known, found))
    return first.shape != second.shape or int(np.abs(first - second).max()) > TOLERANCE


def _render(pipeline: Pipeline, on_step: OnStep) -> NDArray[np.uint8]:
    """The pixels. Raises RenderFailed if they are NaN or all the same, and whatever the pipeline raises."""
    (result,) = pipeline.generate([ImageRequest(recipe(pipeline.model), SEED)], on_step)
    if not isinstance(result, RenderedImage):
        raise result
    if result.pixels.min() == result.pixels.max():
        raise RenderFailed(sentence("trial_blank"))
    return result.pixels
