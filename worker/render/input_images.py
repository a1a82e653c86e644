"""The pictures that strokes are painted over, fetched while the microbatch before is painted: no device waits for them.

A source is scaled until it covers the recipe's width and height, and what is too much of it is cut off at both ends
alike; a mask too, and what is brighter than half of it is repainted. Knows nothing of painting or of Postgres.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageOps

from common.errors import NotFound, RenderFailed, SourceGone
from common.queue.claim import Image, Microbatch
from common.recipes.img2img import InputImage
from common.storage import Storage, sha256
from worker.availability import Availability
from worker.pipelines.base import ImageRequest
from worker.watchdog import Watchdog

FETCHERS = 4  # pictures on their way at the same time
KEPT = 32  # that were fetched lately: the images of a job start from the same one
HALF = 128

Pixels = NDArray[Any]


@dataclass(frozen=True)
class ScaledInput:
    """One picture, as a recipe needs it."""

    role: Literal["source", "mask"]
    original: InputImage
    width: int
    height: int


class PendingInputs:
    """The pictures of one microbatch, on their way. None of text2image."""

    def __init__(self, coming: Mapping[ScaledInput, Future[Pixels | SourceGone]]) -> None:
        self._coming = coming

    def wait(self, seconds: float) -> bool:
        """Whether they have come, or failed to, within that time."""
        return not wait_for(self._coming.values(), seconds).not_done

    def are_there(self) -> bool:
        return all(coming.done() and not coming.exception() for coming in self._coming.values())

    def check(self) -> None:
        """Raises what kept them from coming: Unavailable."""
        for coming in self._coming.values():
            coming.result()

    def stroke(self, image: Image) -> ImageRequest | RenderFailed:
        """What is to be painted of this image, once they have come; or why it cannot be."""
        found = {ground.role: self._coming[ground].result() for ground in _grounds(image)}
        lost = next((pixels for pixels in found.values() if isinstance(pixels, SourceGone)), None)
        return lost or ImageRequest(image.recipe, image.seed, **found)  # type: ignore[arg-type]


class InputImageLoader:
    def __init__(self, storage: Storage, outage: Availability, watchdog: Watchdog) -> None:
        self._storage = storage
        self._outage = outage
        self._watchdog = watchdog
        self._pool = ThreadPoolExecutor(FETCHERS, "fetch")
        self._kept: OrderedDict[ScaledInput, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, microbatch: Microbatch, unless: Callable[[], bool]) -> PendingInputs:
        """Begin to fetch what its images start from, each picture once. While the store is away it is tried again."""
        needed = {ground for image in microbatch.images for ground in _grounds(image)}
        return PendingInputs({ground: self._pool.submit(self._pixels, ground, unless) for ground in needed})

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _pixels(self, ground: ScaledInput, unless: Callable[[], bool]) -> Pixels | SourceGone:
        with self._lock:
            if ground in self._kept:
                self._kept.move_to_end(ground)
                return self._kept[ground]
        try:
            data = self._outage.insist(lambda: self._get(ground.original.key), unless)
        except NotFound:
            return SourceGone(f"The {ground.role} {ground.original.id} is not there any more.")
        if sha256(data) != ground.original.sha256:
            return SourceGone(f"The {ground.role} {ground.original.id} is not what it was when the job was submitted.")
        pixels = _scaled(data, ground)
        with self._lock:
            self._kept[ground] = pixels
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return pixels

    def _get(self, key: str) -> bytes:
        with self._watchdog.watches("store"):
            return self._storage.get(key)


def _grounds(image: Image) -> list[ScaledInput]:
    recipe = image.recipe
    given: tuple[tuple[Literal["source", "mask"], InputImage | None], ...]
    given = ("source", recipe.source), ("mask", recipe.mask)
    return [ScaledInput(role, original, recipe.width, recipe.height) for role, original in given if original]


def _scaled(data: bytes, ground: ScaledInput) -> Pixels:
    size = ground.width, ground.height
    with Pictures.open(BytesIO(data)) as picture:
        if ground.role == "source":
            return np.asarray(ImageOps.fit(picture.convert("RGB"), size, Pictures.Resampling.LANCZOS))
        return np.asarray(ImageOps.fit(picture.convert("L"), size, Pictures.Resampling.NEAREST)) >= HALF
