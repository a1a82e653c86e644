"""The interface of a model in memory: a `Pipeline` takes `ImageRequest`s and gives `RenderedImage`s.

`worker.pipelines.diffusers_pipeline` and `worker.pipelines.stub` implement it and pass one conformance suite. Knows
neither of them, nor jobs, leases or storage; imports no torch.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.catalog.catalog import Model
from common.errors import RenderFailed
from common.recipes.recipe import Recipe

TRIAL_PROMPT = "画朵花"  # of trial pictures; the stub takes no time for it
OnStep = Callable[[int, int], None]  # step, from 1 up, and the number of steps


class DeviceLost(Exception):
    """The device is broken for this process: every later call would fail too. The process must end."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to render: its recipe and its seed, and for image2image and inpaint the input pixels."""

    recipe: Recipe
    seed: int
    source: NDArray[np.uint8] | None = None  # height × width × RGB, in the recipe's size; None for text2image
    mask: NDArray[np.bool_] | None = None  # height × width, true where to repaint; None unless inpaint


@dataclass(frozen=True)
class RenderedImage:
    pixels: NDArray[np.uint8]  # height × width × RGB
    flagged: bool  # by the safety checker; the pixels must then not be stored
    unchecked: bool = False  # flagged because the safety checker could not judge them
    score: float | None = None  # of the safety checker: above 0 if it flagged them; None if nothing judged them
    concept: int | None = None  # the number of the concept with that score


class Pipeline(Protocol):
    """A model in memory. Only the thread that loaded it may use it."""

    model: Model
    revision: str | None  # what identifies its weights: see `worker.models.weights`
    details: Mapping[str, Any]  # what this model adds to the worker's class: precision, compiled, tiles
    components: Mapping[Hashable, int]  # bytes by component id; models that share a component have the same id

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        """Render all requests in one pipeline call; the result has an image or an error for each, in their order.

        The recipes must have the same `compatibility`. `on_step(step, steps)` is called after each denoising step; it
        may raise Interrupted, and the pipeline stays usable. Where a mask is false the result has the source's exact
        pixels; the safety checker gets the composite. NanImage means that fp32 gave NaN too. Raises OutOfMemory for
        all requests together, and DeviceLost.
        """
        ...

    def sharing_key(self, request: ImageRequest) -> Hashable:
        """Equal for requests that may be in one call, beside their `compatibility`."""
        ...

    def find_batch_size(self, reserved: int) -> int:
        """The number of images of the model's default size to render in one call while models hold `reserved` bytes.

        Takes a few seconds where it is measured.
        """
        ...

    def close(self) -> None:
        """Free the memory. Nothing may be called afterwards. Close before loading the next model."""
        ...
