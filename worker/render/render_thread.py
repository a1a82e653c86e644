"""The painting thread: loads models and paints microbatches, one after the other. Painters never leave it.

What it is given to do waits in its queue and is answered with a Future. Knows nothing of Postgres or of storing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from common.catalog.catalog import Model
from common.errors import Interrupted, OutOfMemory, RenderFailed
from common.log import log_event
from common.queue.claim import Image
from common.recipes.recipe import canonical_json
from worker.models.manager import ModelManager
from worker.pipelines.base import DeviceLost, ImageRequest, OnStep, Pipeline, RenderedImage
from worker.pipelines.batch_size import at_size
from worker.render.inflight import InflightMicrobatch, RenderedMicrobatch
from worker.watchdog import Watchdog

REDUCED_S = 600  # for so long fewer images are painted at once after memory ran out: it may have been somebody else's


class RenderThread:
    def __init__(self, gallery: ModelManager, watchdog: Watchdog, worker_class: Mapping[str, Any]) -> None:
        """The class of this worker goes into every picture's file, beside its recipe."""
        self.seconds_per_image: dict[str, float] = {}  # model → lately measured
        self.rendering: InflightMicrobatch | None = None  # the one being painted, or the last one
        self._gallery = gallery
        self._watchdog = watchdog
        self._short: dict[str, tuple[int, float]] = {}  # model → images at once, and until when
        self._class = dict(worker_class)
        self._thread = ThreadPoolExecutor(1, "paint")

    def load(self, model: str) -> "Future[Pipeline]":
        """Make a model resident. Fails with ModelRefused, or Unavailable."""
        return self._thread.submit(self._load, model)

    def paint(self, rendering: InflightMicrobatch, check: Callable[[], None]) -> None:
        """Paint a started microbatch, right after the one at hand if there is one; `painting` tells what came of it.

        `check` is called at every step; what it raises (Interrupted) stops it.
        """
        rendering.painting = self._thread.submit(self._paint, rendering, check)

    def capacity(self, model: Model) -> int:
        """The images of one call at the usual size: of the gallery, or as many as fitted when memory ran out lately."""
        capacity = self._gallery.batch_size(model)
        images, until = self._short.get(model.name, (capacity, 0.0))
        return min(images, capacity) if time.monotonic() < until else capacity

    def close(self) -> bool:
        """Close the painter; False if it is still busy: nobody can stop a model from being loaded."""
        closing = self._thread.submit(self._gallery.close)
        self._thread.shutdown(wait=False)
        return not wait_for([closing], timeout=1).not_done

    # In the thread

    def _load(self, model: str) -> Pipeline:
        with self._ending_with_the_device():
            return self._gallery.get(model)

    def _paint(self, rendering: InflightMicrobatch, check: Callable[[], None]) -> RenderedMicrobatch:
        microbatch, images = rendering.microbatch, rendering.images or ()
        painter = self._load(microbatch.model)
        expected = self.seconds_per_image.get(microbatch.model)
        rendering.begin(expected * len(images) if expected is not None else None)
        self.rendering = rendering

        began = time.monotonic()
        with self._ending_with_the_device(), self._watchdog.watches("step") as begins:

            def on_step(step: int, steps: int) -> None:
                begins("decode" if step == steps else "step")
                rendering.advance(step, steps)
                check()

            pictures = self._pictures(painter, rendering, images, on_step)
        seconds = time.monotonic() - began
        if any(isinstance(picture, RenderedImage) for picture in pictures):
            self._measure(microbatch.model, seconds / len(images))
        return RenderedMicrobatch(microbatch, list(zip(images, pictures, strict=True)), seconds, self._texts(painter))

    def _texts(self, painter: Pipeline) -> dict[str, str]:
        """What else decides a picture, beside its recipe and seed."""
        texts = {
            "worker": canonical_json({**self._class, **painter.details}),
            "software": f"Huafang {version('huafang')}",
        }
        return {**texts, "revision": painter.revision} if painter.revision else texts

    def _measure(self, model: str, seconds: float) -> None:
        known = self.seconds_per_image.get(model, seconds)
        self.seconds_per_image = {**self.seconds_per_image, model: 0.7 * known + 0.3 * seconds}

    def _pictures(
        self, painter: Pipeline, rendering: InflightMicrobatch, images: tuple[Image, ...], on_step: OnStep
    ) -> list[RenderedImage | RenderFailed]:
        strokes = [rendering.grounds.stroke(image) for image in images]
        fitting = [(image, s) for image, s in zip(images, strokes, strict=True) if isinstance(s, ImageRequest)]
        painted = iter(self._in_parts(painter, rendering, fitting, on_step) if fitting else ())
        return [next(painted) if isinstance(stroke, ImageRequest) else stroke for stroke in strokes]

    def _in_parts(
        self,
        painter: Pipeline,
        rendering: InflightMicrobatch,
        strokes: list[tuple[Image, ImageRequest]],
        on_step: OnStep,
    ) -> list[RenderedImage | RenderFailed]:
        """In parts that fit, where pictures are larger than usual.

        What breaks a part is tried again in smaller ones, so that one image cannot take the others along.
        """
        model, recipe = painter.model, strokes[0][1].recipe
        at_once = at_size(self.capacity(model), model.width * model.height, recipe.width * recipe.height)
        parts, painted = _parts(strokes, at_once), list[RenderedImage | RenderFailed]()
        while parts:
            part = parts.pop(0)
            rendering.begin_part(len(painted) / len(strokes), len(part) / len(strokes))
            try:
                painted += painter.generate([stroke for _, stroke in part], on_step)
            except (Interrupted, DeviceLost):
                raise
            except Exception as error:
                if len(part) == 1:
                    painted.append(_failure(part[0][0], error))
                elif isinstance(error, OutOfMemory):
                    self._remember(model, len(part) // 2)  # at once: the next microbatch is claimed meanwhile
                    parts[:0] = _parts(part, len(part) // 2)
                else:
                    parts[:0] = _parts(part, 1)
        return painted

    def _remember(self, model: Model, images: int) -> None:
        self._short[model.name] = images, time.monotonic() + REDUCED_S
        log_event("memory_short", model=model.name, images=images)

    @contextmanager
    def _ending_with_the_device(self) -> Iterator[None]:
        try:
            yield
        except DeviceLost as error:
            self._watchdog.end(str(error))


def _parts(strokes: list[tuple[Image, ImageRequest]], size: int) -> list[list[tuple[Image, ImageRequest]]]:
    return [strokes[at : at + size] for at in range(0, len(strokes), size)]


def _failure(image: Image, error: Exception) -> RenderFailed:
    if isinstance(error, RenderFailed):
        return error
    log_event("render_failed", exc_info=True, image=image.id, job=image.job_id)
    return RenderFailed(f"The painter failed ({type(error).__name__}).")
