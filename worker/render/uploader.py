"""The uploader: encodes, stores and publishes rendered images while the next microbatch renders.

Bytes are stored first, under a key that contains the lease; then one fenced statement makes a microbatch visible. While
the image store or Postgres is away, images wait here until it is back or their lease is lost. Knows no pipeline.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Semaphore
from typing import Any
from uuid import UUID

from sqlalchemy import Engine as Database

from common.db import transaction
from common.enums import ImageState
from common.errors import Poison, RenderFailed, Unavailable
from common.failures import internal_error, new_reference
from common.log import log_event
from common.queue import leases
from common.queue.claim import Image, Microbatch
from common.queue.leases import Outcome, Published
from common.recipes.picture_key import of_one
from common.recipes.recipe import canonical_json
from common.storage import MEDIA_TYPES, Storage, image_key, sha256
from worker.availability import Availability
from worker.labels.labeller import Labeller
from worker.pipelines.base import RenderedImage
from worker.quarantine.quarantine import Quarantine
from worker.quarantine.store_watch import StoreWatch
from worker.render import sentence
from worker.render.encode import encode
from worker.render.inflight import HeldLeases, RenderedMicrobatch
from worker.watchdog import Watchdog

UPLOADS = 8  # at the same time: a store that is 50 ms away takes 160 images a second
ENCODERS = 2  # of them being encoded: enough for any GPU, and few enough to leave it a core


class Uploader:
    def __init__(
        self,
        worker_id: UUID,
        database: Database,
        storage: Storage,
        announce: Callable[[Iterable[UUID]], None],
        held_leases: HeldLeases,
        database_availability: Availability,
        storage_availability: Availability,
        watchdog: Watchdog,
        store_watch: StoreWatch,
        quarantine: Quarantine,
        labeller: Labeller,
    ) -> None:
        """`announce` gets the ids of the jobs whose images were published; it must not block."""
        self._worker_id = worker_id
        self._database = database
        self._storage = storage
        self._announce = announce
        self._held_leases = held_leases
        self._database_availability = database_availability
        self._storage_availability = storage_availability
        self._watchdog = watchdog
        self._store_watch = store_watch
        self._submitted: dict[UUID, Microbatch] = {}  # by lease; not published yet
        self._quarantine = quarantine
        self._labeller = labeller
        self._uploads = ThreadPoolExecutor(UPLOADS, "upload")
        self._encoders = Semaphore(ENCODERS)
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._deadline = float("inf")

    def submit(self, rendered: RenderedMicrobatch) -> None:
        """Store and publish the images of a microbatch. Returns at once."""
        self._submitted[rendered.microbatch.lease_id] = rendered.microbatch
        uploads = [self._uploads.submit(self._outcome, rendered, image, result) for image, result in rendered.results]
        self._publisher.submit(self._publish, rendered.microbatch, uploads)

    def release(self, microbatch: Microbatch, reason: str) -> None:
        """Release a lease, finished or not; at the next heartbeat if Postgres is away."""
        try:
            with self._database_availability.tracked(), transaction(self._database) as connection:
                leases.release(connection, microbatch.lease_id)
            self._held_leases.remove(microbatch.lease_id)
        except Unavailable:
            self._held_leases.defer_release(microbatch.lease_id)
        except Exception as error:
            return self.fail(microbatch, error)
        log_event("microbatch_released", **self.log_fields(microbatch), reason=reason)

    def give_back(self, reason: str) -> None:
        """Release at once what is rendered and not published, however long a try to store it still takes."""
        for microbatch in list(self._submitted.values()):
            self.release(microbatch, reason)

    def fail(self, microbatch: Microbatch, error: Exception) -> None:
        """Count an attempt of each image, or of those that cannot be read, after an unforeseen exception.

        If that fails too, the lease expires, and the sweep takes its images back.
        """
        reference, fields = new_reference(), self.log_fields(microbatch)
        ids = list(microbatch.unreadable) or [image.id for image in microbatch.images]
        log_event("microbatch_failed", exc_info=error, **fields, failed=",".join(map(str, ids)), reference=reference)
        if len(ids) == 1:  # of several nobody knows which one it was
            self._quarantine.note_call(ids)
        try:
            with self._database_availability.tracked(), transaction(self._database) as connection:
                published = leases.fail(
                    connection, microbatch.lease_id, ids, self._quarantine.name, internal_error(reference)
                )
            self._announce(published.ended_jobs)
        except Unavailable:
            pass
        except Exception:
            log_event("microbatch_failed", exc_info=True, **fields, reference=reference)
        finally:
            self._held_leases.remove(microbatch.lease_id)

    def close(self, seconds: float) -> None:
        """Finish what was submitted; what cannot be finished in that time is released."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._uploads.shutdown()
        self._publisher.shutdown()

    def stop_uploads(self) -> None:
        """Begin no further upload: what is not stored by now is released."""
        self._deadline = time.monotonic()

    def log_fields(self, microbatch: Microbatch) -> dict[str, Any]:
        """The fields of every log line about a microbatch."""
        requests = {image.request_id: None for image in microbatch.images if image.request_id}
        return {
            "worker": self._worker_id,
            "lease": microbatch.lease_id,
            "model": microbatch.model,
            "images": len(microbatch.images),
            "jobs": ",".join({str(image.job_id): None for image in microbatch.images}),
            "request_id": ",".join(requests) or None,
        }

    # One image

    def _outcome(
        self, rendered: RenderedMicrobatch, image: Image, result: RenderedImage | RenderFailed
    ) -> Outcome | None:
        """None if the image is not wanted any more, or there is no time left to store it."""
        drawn_with = rendered.drawn_with
        key = drawn_with.key(image.recipe, image.index)
        outcome = self._judged_and_stored(rendered, image, result, key)
        return outcome and replace(outcome, picture_key=key, picture_class=drawn_with.picture_class)

    def _judged_and_stored(
        self, rendered: RenderedMicrobatch, image: Image, result: RenderedImage | RenderFailed, picture_key: str
    ) -> Outcome | None:
        render_ms = round(1000 * rendered.seconds / len(rendered.results))
        if isinstance(result, RenderFailed):
            return self._failed(rendered, image, result)
        if result.unchecked:
            log_event("image_unchecked", **self.log_fields(rendered.microbatch), image=image.id)
            code, message = "unchecked", sentence("unchecked")
            return Outcome(image.id, ImageState.FLAGGED, render_ms=render_ms, error_code=code, error_message=message)
        judged: dict[str, Any] = {"safety_score": result.score, "safety_concept": result.concept}
        if result.flagged:
            return Outcome(image.id, ImageState.FLAGGED, render_ms=render_ms, **judged)
        if self._gives_up(rendered.microbatch, image):
            return None
        began = time.monotonic()
        try:
            data = self._encode(rendered, image, result, picture_key)
        except Exception as error:
            log_event("encode_failed", exc_info=True, **self.log_fields(rendered.microbatch), image=image.id)
            return self._failed(rendered, image, RenderFailed(sentence("encode_failed", error=error)))
        try:
            key, digest, size = self._store(rendered, image, data)
        except Unavailable:
            return None
        store_ms = round(1000 * (time.monotonic() - began))
        return Outcome(image.id, ImageState.STORED, key, digest, size, render_ms, store_ms, **judged)

    def _encode(self, rendered: RenderedMicrobatch, image: Image, result: RenderedImage, picture_key: str) -> bytes:
        # Nothing of the job: the same recipe and seed give the same bytes on the same worker.
        recipe = of_one(image.recipe, image.index)
        own = {"key": picture_key, "recipe": canonical_json(recipe.content), "seed": str(image.seed)}
        with self._encoders, self._watchdog.watch("store"):
            pixels, xmp = self._labeller.label(result.pixels, picture_key, recipe.mode)
            return encode(pixels, image.recipe.format, {**own, **rendered.metadata}, xmp)

    def _store(self, rendered: RenderedMicrobatch, image: Image, data: bytes) -> tuple[str, str, int]:
        """The key, the sha256 and the bytes of the stored image. Raises Unavailable when it is too late for it."""
        image_format = image.recipe.format
        key = image_key(image.job_id, image.index, rendered.microbatch.lease_id, image_format)
        self._storage_availability.retry(
            lambda: self._put(key, data, MEDIA_TYPES[image_format]),
            give_up=lambda: self._gives_up(rendered.microbatch, image),
        )
        return key, sha256(data), len(data)

    def _put(self, key: str, data: bytes, media_type: str) -> None:
        """Raises Unavailable, whatever is wrong: what a store does not take is its trouble, or the host's."""
        began = time.monotonic()
        try:
            with self._watchdog.watch("store"):
                self._storage.put(key, data, media_type)
        except Unavailable as error:
            self._store_watch.note_failed(began, error.message)
            raise
        except Exception as error:
            why = sentence("store_failed", error=error)
            if self._store_watch.note_failed(began, why):  # at each further try it would be logged again
                log_event("store_failed", exc_info=True, worker=self._worker_id, key=key)
            raise Unavailable(why) from error
        self._store_watch.note_stored()

    def _failed(self, rendered: RenderedMicrobatch, image: Image, error: RenderFailed) -> Outcome:
        log_event(
            "image_failed",
            worker=self._worker_id,
            image=image.id,
            job=image.job_id,
            request_id=image.request_id,
            lease=rendered.microbatch.lease_id,
            code=error.code,
            reason=error.message,
        )
        return Outcome(
            image.id,
            ImageState.FAILED,
            error_code=error.code,
            error_message=error.message,
            retryable=error.retryable,
            failed_by=self._quarantine.name if isinstance(error, Poison) else None,
        )

    def _gives_up(self, microbatch: Microbatch, image: Image) -> bool:
        """Whether the image is not wanted any more, or not to be stored here."""
        is_wanted = image.id in self._held_leases.wanted(microbatch.lease_id)
        return self._is_late() or self._store_watch.gives_back or not is_wanted

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    # One microbatch

    def _publish(self, microbatch: Microbatch, uploads: list[Future[Outcome | None]]) -> None:
        try:
            outcomes = [outcome for upload in uploads if (outcome := upload.result())]
            if not outcomes and microbatch.lease_id not in self._held_leases.ids():  # given back meanwhile
                return
            if not outcomes:
                return self.release(microbatch, sentence("unwanted"))
            published = self._database_availability.retry(
                lambda: self._publish_once(microbatch.lease_id, outcomes), give_up=self._is_late
            )
        except Unavailable:
            return self._held_leases.defer_release(microbatch.lease_id)
        except Exception as error:
            return self.fail(microbatch, error)
        finally:
            self._submitted.pop(microbatch.lease_id, None)
        log_event("microbatch_published", **self.log_fields(microbatch), visible=len(published.images))
        self._announce(image.job_id for image in microbatch.images)
        self._discard(microbatch, [o.key for o in outcomes if o.key and o.image_id not in published.images])
        self._held_leases.remove(microbatch.lease_id)

    def _publish_once(self, lease_id: UUID, outcomes: list[Outcome]) -> Published:
        with self._watchdog.watch("store"), transaction(self._database) as connection:
            return leases.publish(connection, lease_id, outcomes)

    def _discard(self, microbatch: Microbatch, keys: list[str]) -> None:
        """Delete images that never became visible: cancelled meanwhile, or another lease's by now."""
        if not keys:
            return
        try:
            with self._storage_availability.tracked():
                self._storage.delete(keys)
        except Unavailable:
            pass
        except Exception:  # the sweep deletes them later
            log_event("discard_failed", exc_info=True, **self.log_fields(microbatch), reference=new_reference())
            return
        log_event("images_discarded", **self.log_fields(microbatch), discarded=len(keys))
