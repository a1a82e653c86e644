"""A painter without a model: a gradient and noise from the prompt and the seed. All but the GPU can be tried with it.

The device is `stub`, or `stub:SECONDS` for the time that one denoising step is to take. Needs no torch. A prompt can
ask for trouble, to try what becomes of it: see FLAGGED and HANG. Knows nothing of what a prompt means.
"""

import hashlib
import os
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.catalog.catalog import Model
from common.errors import NanImage, OutOfMemory, PromptRefused, PromptTooLong, RenderFailed
from common.recipes import prompt_weighting, token_counter
from worker.pipelines.base import DeviceLost, ImageRequest, OnStep, RenderedImage

FLAGGED, NAN, OOM = "#flagged", "#nan", "#oom"  # in a prompt: flagged, broken, or too much for the memory
HANG, DIE, LOST = "#hang", "#die", "#lost"  # at the first step: for ever, by SIGKILL, or the device is lost
STEP_S = 0.001
BYTES = 2**30  # of no memory at all: what models take of it is tried with these
CAPACITY = 8


def load(model: Model, device: str = "stub", threads: int | None = None) -> "StubPipeline":
    return StubPipeline(model, float(device.partition(":")[2] or STEP_S))


def model_memory(device: str = "stub") -> int:
    return BYTES  # one at a time, unless the settings say otherwise


def model_components(model: Model) -> dict[Hashable, int]:
    return {model.name: BYTES}


def describe(device: str = "stub", threads: int | None = None) -> dict[str, str | int | None]:
    return {"device": "stub", "numpy": np.__version__}


class StubPipeline:
    def __init__(self, model: Model, step_s: float = STEP_S) -> None:
        self.model = model
        self.revision = model.revision
        self.details: Mapping[str, Any] = {}
        self.parts: Mapping[Hashable, int] = model_components(model)
        self.step_s = step_s

    def paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        if any(OOM in stroke.recipe.prompt for stroke in strokes):
            raise OutOfMemory("The stub was asked to run out of memory.")
        refusals = [self._refusal(stroke) for stroke in strokes]
        if not all(refusals):
            steps, began = strokes[0].recipe.steps_taken, time.monotonic()
            for step in range(1, steps + 1):
                # Lets other threads run, as a GPU does; and as there, a step that was noticed late delays none.
                time.sleep(max(began + step * self.step_s - time.monotonic(), 0))
                _trouble("\n".join(stroke.recipe.prompt for stroke in strokes))
                on_step(step, steps)
        return [refusal or _picture(stroke) for stroke, refusal in zip(strokes, refusals, strict=True)]

    def find_capacity(self, reserved: int) -> int:
        return CAPACITY

    def close(self) -> None:
        pass

    def _refusal(self, stroke: ImageRequest) -> PromptRefused | None:
        try:
            token_counter.check(stroke.recipe, self.model)
        except PromptTooLong as error:
            return PromptRefused(error.message)
        return None


def _trouble(prompts: str) -> None:
    if DIE in prompts:
        os.kill(os.getpid(), signal.SIGKILL)
    if LOST in prompts:
        raise DeviceLost("The stub was asked to lose its device.")
    while HANG in prompts:
        time.sleep(1)


def _picture(stroke: ImageRequest) -> RenderedImage | RenderFailed:
    if NAN in stroke.recipe.prompt:
        return NanImage("The stub was asked for a picture that is not a number.")
    return RenderedImage(_over(stroke, _pattern(stroke)), flagged=FLAGGED in stroke.recipe.prompt)


def _over(stroke: ImageRequest, pattern: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pattern over the source, the less to be seen through the more of the steps are taken."""
    if stroke.source is None:
        return pattern
    share = 256 * stroke.recipe.steps_taken // stroke.recipe.steps
    mixed = (stroke.source.astype(np.uint16) * (256 - share) + pattern.astype(np.uint16) * share >> 8).astype(np.uint8)
    return mixed if stroke.mask is None else np.where(stroke.mask[..., None], mixed, stroke.source)


def _pattern(stroke: ImageRequest) -> NDArray[np.uint8]:
    """From one colour of the prompt to another, diagonally, under 4 bits of noise (a PNG of honest size)."""
    recipe = stroke.recipe
    words = "\0".join([*map(_said, (recipe.prompt, recipe.negative_prompt)), *map(repr, recipe.lora)]).encode()
    first, second = np.frombuffer(hashlib.sha256(words).digest()[:6], np.uint8).reshape(2, 3).astype(np.float32) * 0.94
    colours = (first + np.linspace(0, 1, 256)[:, None] * (second - first)).astype(np.uint8)
    pixels: NDArray[np.uint8] = colours.take(_diagonal(recipe.height, recipe.width), axis=0)
    noise = np.frombuffer(np.random.default_rng(stroke.seed).bytes(pixels.size // 2), np.uint8)
    halves = pixels.reshape(2, -1)
    halves[0] += noise & 15
    halves[1] += noise >> 4
    return pixels


def _said(prompt: str) -> str:
    return (
        repr(prompt_weighting.split_fragments(prompt))
        if prompt_weighting.has_weights(prompt)
        else prompt_weighting.strip_weights(prompt)
    )


@lru_cache(8)
def _diagonal(height: int, width: int) -> NDArray[np.uint8]:
    """How far each pixel is on the way from corner to corner. Kept: a stub takes no CPU that a GPU would not."""
    return np.add.outer(np.linspace(0, 127.5, height), np.linspace(0, 127.5, width)).astype(np.uint8)
