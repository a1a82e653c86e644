"""What happens to painted pictures: encoded, uploaded, then published, all while the next microbatch is painted.

Bytes first, under a key that contains the lease; then one fenced statement makes a microbatch visible. While the image
store or Postgres is away, pictures wait here until it is back or their lease is lost. Knows nothing of painting.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from common.db import transaction
from common.enums import ImageState
from common.errors import NotFound, RenderFailed, Unavailable
from common.log import log_event
from common.queue import leases
from common.queue.claim import Image, Microbatch
from common.queue.leases import Outcome, Published
from common.recipes.recipe import canonical_json
from common.storage import MEDIA_TYPES, Storage, image_key, sha256
from worker.availability import Availability
from worker.pipelines.base import RenderedImage
from worker.render.encode import encode
from worker.render.inflight import HeldLeases, RenderedMicrobatch
from worker.watchdog import Watchdog

UPLOADS = 8  # pictures on their way at the same time: a store that is 50 ms away takes 160 a second
ENCODERS = 2  # of them being encoded: enough for any GPU, and few enough to leave it a core


class Uploader:
    def __init__(
        self,
        worker_id: UUID,
        database: Engine,
        storage: Storage,
        announce: Callable[[Iterable[UUID]], None],
        holdings: HeldLeases,
        database_outage: Availability,
        storage_outage: Availability,
        watchdog: Watchdog,
    ) -> None:
        """`announce` is told whose pictures were published; it must not block."""
        self._worker_id = worker_id
        self._database = database
        self._storage = storage
        self._announce = announce
        self._holdings = holdings
        self._database_outage = database_outage
        self._storage_outage = storage_outage
        self._watchdog = watchdog
        self._uploads = ThreadPoolExecutor(UPLOADS, "upload")
        self._encoders = Semaphore(ENCODERS)
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._close_at = float("inf")

    def accept(self, painted: RenderedMicrobatch) -> None:
        """Take the pictures of a microbatch and return at once."""
        uploads = [self._uploads.submit(self._outcome, painted, image, picture) for image, picture in painted.pictures]
        self._publisher.submit(self._publish, painted.microbatch, uploads)

    def give_back(self, microbatch: Microbatch, reason: str) -> None:
        """Release a lease, whatever of it was done; at the next beat if Postgres is away."""
        try:
            with self._database_outage.noticed(), transaction(self._database) as connection:
                leases.release(connection, microbatch.lease_id)
            self._holdings.let_go(microbatch.lease_id)
        except Unavailable:
            self._holdings.abandon(microbatch.lease_id)
        log_event("microbatch_released", **self.facts(microbatch), reason=reason)

    def close(self, seconds: float) -> None:
        """Finish what was accepted; what cannot be finished in that time is given back."""
        self._close_at = min(self._close_at, time.monotonic() + seconds)
        self._uploads.shutdown()
        self._publisher.shutdown()

    def hurry(self) -> None:
        """Begin nothing more: what is not stored by now is given back."""
        self._close_at = time.monotonic()

    def facts(self, microbatch: Microbatch) -> dict[str, Any]:
        """What every log line about a microbatch says."""
        requests = {image.request_id: None for image in microbatch.images if image.request_id}
        return {
            "worker": self._worker_id,
            "lease": microbatch.lease_id,
            "model": microbatch.model,
            "images": len(microbatch.images),
            "jobs": ",".join({str(image.job_id): None for image in microbatch.images}),
            "request_id": ",".join(requests) or None,
        }

    # One picture

    def _outcome(
        self, painted: RenderedMicrobatch, image: Image, picture: RenderedImage | RenderFailed
    ) -> Outcome | None:
        """None: nobody wants the picture any more, or this process has no time left to store it."""
        render_ms = round(1000 * painted.seconds / len(painted.pictures))
        if isinstance(picture, RenderFailed):
            return self._failed(painted, image, picture)
        if picture.flagged:
            return Outcome(image.id, ImageState.FLAGGED, render_ms=render_ms)
        if self._is_late() or not self._is_wanted(painted.microbatch, image):
            return None
        began = time.monotonic()
        try:
            key, digest, size = self._upload(painted, image, picture)
        except Unavailable:
            return None
        except Exception as error:
            log_event("store_failed", exc_info=True, **self.facts(painted.microbatch), image=image.id)
            return self._failed(painted, image, RenderFailed(f"The picture could not be stored ({error})."))
        store_ms = round(1000 * (time.monotonic() - began))
        return Outcome(image.id, ImageState.STORED, key, digest, size, render_ms, store_ms)

    def _upload(self, painted: RenderedMicrobatch, image: Image, picture: RenderedImage) -> tuple[str, str, int]:
        recipe = image.recipe
        # Nothing of the job: the same recipe and seed give the same bytes on the same worker.
        own = {"recipe": canonical_json(recipe.content), "index": str(image.index), "seed": str(image.seed)}
        with self._encoders, self._watchdog.watches("store"):
            data = encode(picture.pixels, recipe.format, {**own, **painted.texts})
        key = image_key(image.job_id, image.index, painted.microbatch.lease_id, recipe.format)
        self._storage_outage.insist(
            lambda: self._put(key, data, MEDIA_TYPES[recipe.format]),
            unless=lambda: self._is_late() or not self._is_wanted(painted.microbatch, image),
        )
        return key, sha256(data), len(data)

    def _put(self, key: str, data: bytes, media_type: str) -> None:
        try:
            with self._watchdog.watches("store"):
                self._storage.put(key, data, media_type)
        except NotFound as error:
            raise Unavailable(f"The bucket {self._storage.bucket} is not there.") from error

    def _failed(self, painted: RenderedMicrobatch, image: Image, error: RenderFailed) -> Outcome:
        log_event(
            "image_failed",
            worker=self._worker_id,
            image=image.id,
            job=image.job_id,
            request_id=image.request_id,
            lease=painted.microbatch.lease_id,
            code=error.code,
            reason=error.message,
        )
        return Outcome(
            image.id,
            ImageState.FAILED,
            error_code=error.code,
            error_message=error.message,
            retryable=error.retryable,
        )

    def _is_wanted(self, microbatch: Microbatch, image: Image) -> bool:
        return image.id in self._holdings.wanted(microbatch.lease_id)

    def _is_late(self) -> bool:
        return time.monotonic() > self._close_at

    # One microbatch

    def _publish(self, microbatch: Microbatch, uploads: list[Future[Outcome | None]]) -> None:
        outcomes = [outcome for upload in uploads if (outcome := upload.result())]
        if not outcomes:
            return self.give_back(microbatch, "its pictures are not wanted here any more")
        try:
            published = self._database_outage.insist(
                lambda: self._publish_once(microbatch.lease_id, outcomes), unless=self._is_late
            )
        except Unavailable:
            return self._holdings.abandon(microbatch.lease_id)
        except Exception:
            log_event("publish_failed", exc_info=True, **self.facts(microbatch))
            return self.give_back(microbatch, "its pictures could not be published")
        log_event("microbatch_published", **self.facts(microbatch), visible=len(published.images))
        self._announce(image.job_id for image in microbatch.images)
        self._discard(microbatch, [o.key for o in outcomes if o.key and o.image_id not in published.images])
        self._holdings.let_go(microbatch.lease_id)

    def _publish_once(self, lease_id: UUID, outcomes: list[Outcome]) -> Published:
        with self._watchdog.watches("store"), transaction(self._database) as connection:
            return leases.publish(connection, lease_id, outcomes)

    def _discard(self, microbatch: Microbatch, keys: list[str]) -> None:
        """Delete bytes that never became visible: cancelled meanwhile, or another lease's by now."""
        if not keys:
            return
        try:
            with self._storage_outage.noticed():
                self._storage.delete(keys)
        except Unavailable:
            pass
        log_event("pictures_dropped", **self.facts(microbatch), pictures=len(keys))
