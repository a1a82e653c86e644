"""The painting thread: loads models and paints microbatches, one after the other. Painters never leave it.

What it is given to do it answers with a Future. Knows nothing of Postgres, of storing, or of what comes next.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from common.claims import Image, Microbatch
from common.errors import Interrupted, RenderFailed
from common.telemetry import tell
from worker.gallery import Gallery
from worker.painter import OnStep, Painter, Picture, Stroke
from worker.store import Painted


class Rendering:
    """One microbatch between its claim and its last denoising step."""

    def __init__(self, microbatch: Microbatch) -> None:
        self.microbatch = microbatch
        self.images: tuple[Image, ...] | None = None  # that were wanted when the lease started; None: not started
        self.step, self.steps = 0, 0
        self._began = time.monotonic()
        self._ends = float("inf")  # as far as one can tell

    def begin(self, expected_s: float | None) -> None:
        self._began = time.monotonic()
        self._ends = self._began + expected_s if expected_s is not None else float("inf")

    def advance(self, step: int, steps: int) -> None:
        now = time.monotonic()
        self.step, self.steps = step, steps
        self._ends = now + (now - self._began) / step * (steps - step)

    def seconds_left(self) -> float:
        return self._ends - time.monotonic()


class Brush:
    def __init__(self, gallery: Gallery, texts: Mapping[str, str]) -> None:
        """`texts` go into every picture's file, beside its recipe."""
        self.seconds_per_image: dict[str, float] = {}  # model → lately measured
        self.rendering: Rendering | None = None  # the one being painted, or the last one
        self._gallery = gallery
        self._texts = dict(texts)
        self._thread = ThreadPoolExecutor(1, "paint")

    def load(self, model: str) -> "Future[Painter]":
        """Make a model resident. Fails with ModelRefused, or Unavailable."""
        return self._thread.submit(self._gallery.painter, model)

    def paint(self, rendering: Rendering, check: Callable[[], None]) -> "Future[Painted]":
        """Paint a started microbatch. `check` is called at every step; what it raises (Interrupted) stops it."""
        return self._thread.submit(self._paint, rendering, check)

    def close(self) -> bool:
        """Close the painter; False if it is still busy: nobody can stop a model from being loaded."""
        closing = self._thread.submit(self._gallery.close)
        self._thread.shutdown(wait=False)
        return not wait_for([closing], timeout=1).not_done

    # In the thread

    def _paint(self, rendering: Rendering, check: Callable[[], None]) -> Painted:
        microbatch, images = rendering.microbatch, rendering.images or ()
        painter = self._gallery.painter(microbatch.model)
        expected = self.seconds_per_image.get(microbatch.model)
        rendering.begin(expected * len(images) if expected is not None else None)
        self.rendering = rendering

        def on_step(step: int, steps: int) -> None:
            rendering.advance(step, steps)
            check()

        began = time.monotonic()
        pictures = _pictures(painter, images, on_step)
        seconds = time.monotonic() - began
        self._measure(microbatch.model, seconds / len(images))
        texts = {**self._texts, "revision": painter.revision} if painter.revision else self._texts
        return Painted(microbatch, list(zip(images, pictures, strict=True)), seconds, texts)

    def _measure(self, model: str, seconds: float) -> None:
        known = self.seconds_per_image.get(model, seconds)
        self.seconds_per_image = {**self.seconds_per_image, model: 0.7 * known + 0.3 * seconds}


def _pictures(painter: Painter, images: tuple[Image, ...], on_step: OnStep) -> list[Picture | RenderFailed]:
    """What breaks a whole microbatch is tried again image by image, so that one cannot take the others along."""
    strokes = [Stroke(image.recipe, image.seed) for image in images]
    try:
        return painter.paint(strokes, on_step)
    except Interrupted:
        raise
    except Exception as error:
        if len(images) > 1:
            return [picture for image in images for picture in _pictures(painter, (image,), on_step)]
        if isinstance(error, RenderFailed):
            return [error]
        tell("render_failed", exc_info=True, image=images[0].id, job=images[0].job_id)
        return [RenderFailed(f"The painter failed ({type(error).__name__}).")]
