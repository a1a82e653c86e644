"""A pipeline without a model: renders a gradient with noise from the prompt and the seed. Needs no GPU.

The device is `stub`, or `stub:SECONDS` for the seconds of one denoising step. Imports no torch. Markers in a prompt
cause failures for tests: see FLAGGED and HANG. So does a file, for whatever is rendered: with `stub:SECONDS:FILE` the
device is sick while that file exists. In it is a number (1: each call fails, 5: one in five), or GARBAGE.
"""

import hashlib
import os
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.catalog.catalog import Model
from common.errors import NanImage, OutOfMemory, PromptRefused, PromptTooLong, RenderFailed
from common.recipes import prompt_weighting, token_counter
from worker.pipelines import sentence
from worker.pipelines.base import TRIAL_PROMPT, DeviceLost, ImageRequest, OnStep, RenderedImage

FLAGGED, UNCHECKED = "#flagged", "#unchecked"  # flag the image: it is judged so, or cannot be judged
NAN, OOM = "#nan", "#oom"  # render NaN, or run out of memory
HANG, DIE, LOST = "#hang", "#die", "#lost"  # at the first step: hang, die by SIGKILL, or lose the device
POISON = "#poison"  # at the first step: an exception that nobody foresees
GARBAGE = "garbage"  # the sick device renders other pictures, and says nothing
CONCEPTS = 17  # as many as Stable Diffusion's safety checker has
STEP_S = 0.001
MODEL_BYTES = 2**30  # claimed, not allocated: enough to test the limits of model memory
BATCH_SIZE = 8


def load(model: Model, device: str = "stub") -> "StubPipeline":
    _, seconds, file = (*device.split(":", 2), "", "")[:3]
    return StubPipeline(model, float(seconds or STEP_S), Path(file) if file else None)


def components(model: Model) -> dict[Hashable, int]:
    return {model.name: MODEL_BYTES}


def describe() -> dict[str, str | int | None]:
    return {"device": "stub", "numpy": np.__version__}


class SickDevice(Exception):
    """What a sick device raises, as unforeseen as the errors of a driver."""


class StubPipeline:
    def __init__(self, model: Model, step_s: float = STEP_S, sickness: Path | None = None) -> None:
        self.model = model
        self.revision = model.revision
        self.details: Mapping[str, Any] = {}
        self.components: Mapping[Hashable, int] = components(model)
        self.step_s = step_s
        self._sickness = sickness
        self._calls = 0

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        if any(OOM in request.recipe.prompt for request in requests):
            raise OutOfMemory(sentence("stub_out_of_memory"))
        refusals = [self._check_prompt(request) for request in requests]
        is_garbage = self._fail_if_sick()
        if not all(refusals):
            steps, start = requests[0].recipe.steps_taken, time.monotonic()
            step_s = 0 if requests[0].recipe.prompt == TRIAL_PROMPT else self.step_s
            for step in range(1, steps + 1):
                # Other threads run meanwhile, as with a GPU; and a late step does not delay those after it.
                time.sleep(max(start + step * step_s - time.monotonic(), 0))
                _fail_if_asked("\n".join(request.recipe.prompt for request in requests))
                on_step(step, steps)
        rendered = [refusal or _render(request) for request, refusal in zip(requests, refusals, strict=True)]
        return [_garbage(result) if is_garbage else result for result in rendered]

    def sharing_key(self, request: ImageRequest) -> None:
        return None

    def find_batch_size(self, reserved: int) -> int:
        return BATCH_SIZE

    def close(self) -> None:
        pass

    def _fail_if_sick(self) -> bool:
        """Whether the pixels are garbage. Raises SickDevice."""
        if not (self._sickness and self._sickness.exists()):
            return False
        how = self._sickness.read_text().strip()
        self._calls += 1
        if how != GARBAGE and self._calls % int(how) == 0:
            raise SickDevice(f"the device fails in one call of {how}")
        return how == GARBAGE

    def _check_prompt(self, request: ImageRequest) -> PromptRefused | None:
        try:
            token_counter.check(request.recipe, self.model)
        except PromptTooLong as error:
            return PromptRefused(error.message)
        return None


def _fail_if_asked(prompts: str) -> None:
    if DIE in prompts:
        os.kill(os.getpid(), signal.SIGKILL)
    if POISON in prompts:
        raise ArithmeticError("the prompt asked the stub to fail")
    if LOST in prompts:
        raise DeviceLost(sentence("stub_device_lost"))
    while HANG in prompts:
        time.sleep(1)


def _render(request: ImageRequest) -> RenderedImage | RenderFailed:
    if NAN in request.recipe.prompt:
        return NanImage(sentence("stub_nan_image"))
    pixels = _composite(request, _pattern(request))
    if UNCHECKED in request.recipe.prompt:
        return RenderedImage(pixels, flagged=True, unchecked=True)
    flagged = FLAGGED in request.recipe.prompt
    return RenderedImage(pixels, flagged, False, *_score(request, flagged))


def _garbage(result: RenderedImage | RenderFailed) -> RenderedImage | RenderFailed:
    return replace(result, pixels=~result.pixels) if isinstance(result, RenderedImage) else result


def _score(request: ImageRequest, flagged: bool) -> tuple[float, int]:
    """A score of the safety checker, as far from 0 as usual, and the number of a concept."""
    number = int.from_bytes(hashlib.sha256(f"{request.seed} {request.recipe.prompt}".encode()).digest()[:4])
    distance = (1 + number % 99) / 1000
    return distance if flagged else -distance, number % CONCEPTS


def _composite(request: ImageRequest, pattern: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend the pattern over the source, by the share of the steps that the strength takes."""
    if request.source is None:
        return pattern
    share = 256 * request.recipe.steps_taken // request.recipe.steps
    mixed = (request.source.astype(np.uint16) * (256 - share) + pattern.astype(np.uint16) * share >> 8).astype(np.uint8)
    return mixed if request.mask is None else np.where(request.mask[..., None], mixed, request.source)


def _pattern(request: ImageRequest) -> NDArray[np.uint8]:
    """A diagonal gradient between two colours of the prompt, with 4 bits of noise for a realistic size as PNG."""
    recipe = request.recipe
    key = "\0".join([*map(_meaning, (recipe.prompt, recipe.negative_prompt)), *map(repr, recipe.lora)]).encode()
    first, second = np.frombuffer(hashlib.sha256(key).digest()[:6], np.uint8).reshape(2, 3).astype(np.float32) * 0.94
    colours = (first + np.linspace(0, 1, 256)[:, None] * (second - first)).astype(np.uint8)
    pixels: NDArray[np.uint8] = colours.take(_diagonal(recipe.height, recipe.width), axis=0)
    noise = np.frombuffer(np.random.default_rng(request.seed).bytes(pixels.size // 2), np.uint8)
    halves = pixels.reshape(2, -1)
    halves[0] += noise & 15
    halves[1] += noise >> 4
    return pixels


def _meaning(prompt: str) -> str:
    """Equal for prompts that differ in the syntax of weights only."""
    if prompt_weighting.has_weights(prompt):
        return repr(prompt_weighting.split_fragments(prompt))
    return prompt_weighting.strip_weights(prompt)


@lru_cache(8)  # the stub takes no CPU that a GPU would not
def _diagonal(height: int, width: int) -> NDArray[np.uint8]:
    """The position of each pixel between the corners, 0 to 255."""
    return np.add.outer(np.linspace(0, 127.5, height), np.linspace(0, 127.5, width)).astype(np.uint8)
