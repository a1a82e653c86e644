"""What a resident model is to the rest of the worker: a painter, given strokes, gives pictures.

Two kinds paint: `worker.pipelines.stable_diffusion` with diffusers, `worker.pipelines.stub` from the seed alone; both
pass one conformance suite. Imports neither of them (nor torch) until one is asked for, and knows nothing of jobs,
leases or storage.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.catalog.catalog import Model
from common.errors import RenderFailed
from common.recipes.recipe import Recipe

OnStep = Callable[[int, int], None]


class DeviceLost(Exception):
    """The device, or this process's hold on it, is broken: whatever is painted next fails too. Ends the process."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to paint: a recipe and the seed of this image of it; in its size, what it is painted over."""

    recipe: Recipe
    seed: int
    source: NDArray[np.uint8] | None = None  # height × width × RGB, unless the mode is text2image
    mask: NDArray[np.bool_] | None = None  # height × width, true where to repaint: inpaint only


@dataclass(frozen=True)
class RenderedImage:
    pixels: NDArray[np.uint8]  # height × width × RGB
    flagged: bool  # by the safety checker: the pixels must then never be stored


class Pipeline(Protocol):
    """A model in memory. Belongs to one thread."""

    model: Model
    revision: str | None  # the commit of a hub model
    details: Mapping[str, Any]  # what this model adds to the class of its worker: its precision, whether it is compiled
    parts: Mapping[Hashable, int]  # the bytes of each; a part that several models have takes its memory once

    def paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        """One pipeline call: a picture, or why there is none, for each stroke in its place.

        The recipes must share their `compatibility`. Calls `on_step(step, steps)` after every denoising step, from 1
        up; what that raises (Interrupted) leaves the painter usable. Where a mask is false the picture is the source,
        to the bit; the safety checker sees the whole of it. Raises OutOfMemory for all strokes together, and DeviceLost
        when nothing can be painted in this process any more. NanImage is said of what the model cannot paint in full
        precision either.
        """
        ...

    def find_capacity(self, reserved: int) -> int:
        """Images of the model's usual size that one call had best render together, where models take `reserved` bytes.

        Takes a few seconds to try it out, unless the painter knows.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the painter is of no use afterwards. Load the next model only then."""
        ...
