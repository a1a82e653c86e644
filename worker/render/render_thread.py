"""The render thread: loads models and renders microbatches, one after the other. Pipelines never leave it.

Work is queued and answered with a Future. An image at which the pipeline fails for an unforeseen reason is tried alone;
if it fails again, a trial picture tells whether the image is to blame, or this host. Knows nothing of storage.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from uuid import UUID

from common.catalog.catalog import Model
from common.catalog.loras import digests
from common.errors import Interrupted, OutOfMemory, Poison, RenderFailed
from common.log import log_event
from common.queue.claim import Image
from common.recipes.picture_key import DrawnWith
from common.recipes.recipe import canonical_json
from worker.models import weights
from worker.models.manager import ModelManager
from worker.models.trial import Fault
from worker.pipelines.base import DeviceLost, ImageRequest, OnStep, Pipeline, RenderedImage
from worker.pipelines.batch_size import at_size
from worker.quarantine.quarantine import Quarantine
from worker.render import sentence
from worker.render.inflight import InflightMicrobatch, RenderedMicrobatch
from worker.watchdog import Watchdog

TRIALS = 5  # good ones in a row end a quarantine: a device that fails now and then must not come back by luck
REDUCED_S = 600  # for so long a call renders fewer images after memory ran out: another process may have taken it

Chunk = list[tuple[Image, ImageRequest]]  # of one pipeline call
Results = dict[UUID, RenderedImage | RenderFailed]


class RenderThread:
    def __init__(
        self, models: ModelManager, watchdog: Watchdog, worker_class: Mapping[str, Any], quarantine: Quarantine
    ) -> None:
        """`worker_class` is written into the metadata of every image."""
        self.seconds_per_image: dict[str, float] = {}  # by model: a moving average
        self.current: InflightMicrobatch | None = None  # the one being rendered, or the last one
        self._models = models
        self._watchdog = watchdog
        self._quarantine = quarantine
        self._reduced_batch_size: dict[str, tuple[int, float]] = {}  # by model: images of one call, and until when
        self._worker_class = dict(worker_class)
        self._thread = ThreadPoolExecutor(1, "render")

    def load(self, model: str) -> "Future[Pipeline]":
        """Make a model resident. Fails with ModelRefused, or Unavailable."""
        return self._thread.submit(self._load, model)

    def render(self, inflight: InflightMicrobatch, check: Callable[[], None]) -> None:
        """Queue a started microbatch; its `result` is then set.

        `check` is called after every denoising step; what it raises (Interrupted) ends the call.
        """
        inflight.result = self._thread.submit(self._render, inflight, check)

    def try_out(self, model: str) -> "Future[Fault | None]":
        """Render TRIALS trial pictures of a model, or as many until one is bad. Fails as `load` does."""
        return self._thread.submit(self._try_out, model)

    def capacity(self, model: Model) -> int:
        """How many images of the model's usual size one call renders: fewer for a while after memory ran out."""
        capacity = self._models.batch_size(model)
        images, until = self._reduced_batch_size.get(model.name, (capacity, 0.0))
        return min(images, capacity) if time.monotonic() < until else capacity

    def close(self) -> bool:
        """Close the pipelines. False if the thread is still busy: a load cannot be stopped."""
        closing = self._thread.submit(self._models.close)
        self._thread.shutdown(wait=False)
        return not wait_for([closing], timeout=1).not_done

    # In the thread

    def _load(self, model: str) -> Pipeline:
        with self._aborting_if_device_lost(model):
            return self._models.get(model)

    def _try_out(self, model: str) -> Fault | None:
        pipeline = self._load(model)
        with self._aborting_if_device_lost(model), self._watchdog.watch("step") as enter:
            for _ in range(TRIALS):
                if fault := self._models.trials.fault(pipeline, lambda step, steps: enter(_phase(step, steps))):
                    return fault
        return None

    def _render(self, inflight: InflightMicrobatch, check: Callable[[], None]) -> RenderedMicrobatch:
        microbatch, images = inflight.microbatch, inflight.images
        if self._quarantine.is_active:  # since it was queued
            raise Interrupted(sentence("quarantined"))
        pipeline = self._load(microbatch.model)
        expected = self.seconds_per_image.get(microbatch.model)
        inflight.begin_render(expected * len(images) if expected is not None else None)
        self.current = inflight

        began = time.monotonic()
        with self._aborting_if_device_lost(microbatch.model), self._watchdog.watch("step") as enter:

            def on_step(step: int, steps: int) -> None:
                enter(_phase(step, steps))
                inflight.end_step(step, steps)
                check()

            results = self._results(pipeline, inflight, on_step)
        seconds = time.monotonic() - began
        if any(isinstance(result, RenderedImage) for result in results.values()):
            self._measure(microbatch.model, seconds / len(images))
        if not results:
            raise Interrupted(sentence("quarantined"))
        finished = [(image, results[image.id]) for image in images if image.id in results]
        return RenderedMicrobatch(microbatch, finished, seconds, self._metadata(pipeline), self._drawn_with(pipeline))

    def _metadata(self, pipeline: Pipeline) -> dict[str, str]:
        """What decides an image beside its recipe and seed."""
        metadata = {
            "worker": canonical_json({**self._worker_class, **pipeline.details}),
            "software": f"Huafang {version('huafang')}",
        }
        return {**metadata, "revision": pipeline.revision} if pipeline.revision else metadata

    def _drawn_with(self, pipeline: Pipeline) -> DrawnWith:
        picture_class = weights.picture_class(self._worker_class, pipeline.details, pipeline.model)
        return DrawnWith(pipeline.revision, digests(pipeline.model.loras), picture_class)

    def _measure(self, model: str, seconds: float) -> None:
        known = self.seconds_per_image.get(model, seconds)
        self.seconds_per_image = {**self.seconds_per_image, model: 0.7 * known + 0.3 * seconds}

    def _results(self, pipeline: Pipeline, inflight: InflightMicrobatch, on_step: OnStep) -> Results:
        """One result an image; an image whose inputs are gone needs no pipeline call.

        After a fault of this host only those that were finished: the others are given back.
        """
        requests = [(image, inflight.inputs.request(image)) for image in inflight.images]
        complete = [(image, request) for image, request in requests if isinstance(request, ImageRequest)]
        rendered = self._in_chunks(pipeline, inflight, complete, on_step) if complete else {}
        return rendered | {image.id: given for image, given in requests if not isinstance(given, ImageRequest)}

    def _in_chunks(self, pipeline: Pipeline, inflight: InflightMicrobatch, requests: Chunk, on_step: OnStep) -> Results:
        """Render in as many calls as memory needs at this size of image.

        A call that fails is repeated in smaller ones, so that one image cannot fail the others.
        """
        model, recipe = pipeline.model, requests[0][1].recipe
        batch_size = at_size(self.capacity(model), model.width * model.height, recipe.width * recipe.height)
        chunks, results = _chunks(requests, batch_size, pipeline), Results()
        while chunks:
            chunk = chunks.pop(0)
            ids = [image.id for image, _ in chunk]
            inflight.begin_chunk(len(results) / len(requests), len(chunk) / len(requests))
            try:
                rendered = pipeline.generate([request for _, request in chunk], on_step)
                results |= zip(ids, rendered, strict=True)
                self._quarantine.note_call(())
            except (Interrupted, DeviceLost):
                raise
            except Exception as error:
                if not isinstance(error, RenderFailed):
                    self._quarantine.note_call(ids)
                if len(chunk) > 1:
                    chunks[:0] = self._smaller_chunks(chunk, error, pipeline)
                elif own := self._own_failure(chunk[0][0], error, pipeline, results):
                    results |= {ids[0]: own}
                else:
                    break
        return results

    def _smaller_chunks(self, chunk: Chunk, error: Exception, pipeline: Pipeline) -> list[Chunk]:
        if not isinstance(error, OutOfMemory):
            return _chunks(chunk, 1, pipeline)
        self._reduce_batch_size(pipeline.model, len(chunk) // 2)  # now: the next microbatch is claimed meanwhile
        return _chunks(chunk, len(chunk) // 2, pipeline)

    def _own_failure(self, image: Image, error: Exception, pipeline: Pipeline, results: Results) -> RenderFailed | None:
        """Why an image failed that was tried alone; None if this host is at fault, which is quarantined then.

        After an unforeseen error a trial picture tells, once in a microbatch.
        """
        if isinstance(error, RenderFailed):
            return error
        log_event("render_failed", exc_info=True, image=image.id, job=image.job_id)
        is_tried = any(isinstance(result, Poison) for result in results.values())
        if not is_tried and (fault := self._models.trials.fault(pipeline)):
            self._quarantine.begin_by(fault)
            return None
        return Poison(sentence("poison", error=type(error).__name__))

    def _reduce_batch_size(self, model: Model, images: int) -> None:
        self._reduced_batch_size[model.name] = images, time.monotonic() + REDUCED_S
        log_event("batch_size_reduced", model=model.name, images=images)

    @contextmanager
    def _aborting_if_device_lost(self, model: str) -> Iterator[None]:
        try:
            yield
        except DeviceLost as error:
            self._quarantine.begin(sentence("device_lost", error=error), model)  # the next process must try it out
            self._watchdog.abort_process(str(error))


def _chunks(requests: Chunk, size: int, pipeline: Pipeline) -> list[Chunk]:
    """The requests, cut into calls: of this size at most, and of one sharing key each."""
    groups: dict[Hashable, Chunk] = {}
    for image, request in requests:
        groups.setdefault(pipeline.sharing_key(request), []).append((image, request))
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _phase(step: int, steps: int) -> str:
    """Of the watchdog: what comes after this step."""
    return "decode" if step == steps else "step"
