"""The input images of recipes (source and mask), fetched while the microbatch before renders: no device waits for them.

A source is scaled until it covers the recipe's width and height, and cropped to it around its centre. A mask likewise;
where it is brighter than half, the image is rendered anew. Knows nothing of rendering or of Postgres.
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
from PIL import Image as PillowImage
from PIL import ImageOps

from common.errors import InternalError, NotFound, RenderFailed, SourceGone
from common.failures import internal_error, new_reference
from common.log import log_event
from common.queue.claim import Image, Microbatch
from common.recipes.img2img import InputImage
from common.storage import Storage, sha256
from worker.availability import Availability
from worker.pipelines.base import ImageRequest
from worker.render import sentence
from worker.watchdog import Watchdog

FETCHERS = 4  # input images fetched at the same time
CACHED, CACHED_BYTES = 32, 128_000_000  # input images: those of one job start from the same one
MASK_THRESHOLD = 128

Pixels = NDArray[Any]


@dataclass(frozen=True)
class ScaledInput:
    """One input image in the size that a recipe needs."""

    role: Literal["source", "mask"]
    image: InputImage
    width: int
    height: int


class PendingInputs:
    """The input images of one microbatch while they are fetched. Empty for text2image."""

    def __init__(self, pixels: Mapping[ScaledInput, Future[Pixels | RenderFailed]]) -> None:
        self._pixels = pixels

    def wait(self, seconds: float) -> bool:
        """Whether all were fetched, or failed, within that time."""
        return not wait_for(self._pixels.values(), seconds).not_done

    def ready(self) -> bool:
        return all(pixels.done() and not pixels.exception() for pixels in self._pixels.values())

    def check(self) -> None:
        """Raises Unavailable if fetching was given up."""
        for pixels in self._pixels.values():
            pixels.result()

    def request(self, image: Image) -> ImageRequest | RenderFailed:
        """What the pipeline needs to render this image, or why it cannot be rendered. Call it once all were fetched."""
        found = {scaled.role: self._pixels[scaled].result() for scaled in _inputs_of(image)}
        gone = next((pixels for pixels in found.values() if isinstance(pixels, RenderFailed)), None)
        return gone or ImageRequest(image.recipe, image.seed, **found)  # type: ignore[arg-type]


class InputImageLoader:
    def __init__(self, storage: Storage, availability: Availability, watchdog: Watchdog) -> None:
        self._storage = storage
        self._availability = availability
        self._watchdog = watchdog
        self._pool = ThreadPoolExecutor(FETCHERS, "fetch")
        self._cache: OrderedDict[ScaledInput, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, microbatch: Microbatch, give_up: Callable[[], bool]) -> PendingInputs:
        """Begin to fetch the input images of a microbatch, each once. While the store is away it is tried again."""
        needed = {scaled for image in microbatch.images for scaled in _inputs_of(image)}
        return PendingInputs({scaled: self._pool.submit(self._fetch, scaled, give_up) for scaled in needed})

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _fetch(self, scaled: ScaledInput, give_up: Callable[[], bool]) -> Pixels | RenderFailed:
        with self._lock:
            if scaled in self._cache:
                self._cache.move_to_end(scaled)
                return self._cache[scaled]
        try:
            data = self._availability.retry(lambda: self._get(scaled.image.key), give_up)
        except NotFound:
            return SourceGone(sentence("input_missing", role=scaled.role, image=scaled.image.id))
        if sha256(data) != scaled.image.sha256:
            return SourceGone(sentence("input_changed", role=scaled.role, image=scaled.image.id))
        try:
            pixels = _scale(data, scaled)
        except Exception:
            reference = new_reference()
            log_event("input_failed", exc_info=True, image=scaled.image.id, reference=reference)
            return InternalError(internal_error(reference))
        with self._lock:
            self._cache[scaled] = pixels
            while len(self._cache) > CACHED or sum(cached.nbytes for cached in self._cache.values()) > CACHED_BYTES:
                self._cache.popitem(last=False)
        return pixels

    def _get(self, key: str) -> bytes:
        with self._watchdog.watch("store"):
            return self._storage.get(key)


def _inputs_of(image: Image) -> list[ScaledInput]:
    recipe = image.recipe
    given: tuple[tuple[Literal["source", "mask"], InputImage | None], ...]
    given = ("source", recipe.source), ("mask", recipe.mask)
    return [ScaledInput(role, found, recipe.width, recipe.height) for role, found in given if found]


def _scale(data: bytes, scaled: ScaledInput) -> Pixels:
    """A source as height × width × RGB, a mask as height × width booleans."""
    size = scaled.width, scaled.height
    with PillowImage.open(BytesIO(data)) as file:
        if scaled.role == "source":
            return np.asarray(ImageOps.fit(file.convert("RGB"), size, PillowImage.Resampling.LANCZOS))
        return np.asarray(ImageOps.fit(file.convert("L"), size, PillowImage.Resampling.NEAREST)) >= MASK_THRESHOLD
