"""What a render worker holds: its leases, and each microbatch from its claim until its images are with the uploader.

    claimed ──► started ──► rendered      the states of a microbatch in flight; it may be released in each

In memory only, and safe between threads. The loop adds and removes leases; the heartbeat and cancellations make fewer
of their images wanted. An image that is not wanted never becomes wanted again under the same lease.
"""

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from common.errors import RenderFailed
from common.queue.claim import Image, Microbatch
from common.recipes.picture_key import DrawnWith
from worker.pipelines.base import RenderedImage
from worker.render.input_images import PendingInputs


@dataclass
class HeldLease:
    microbatch: Microbatch
    wanted: frozenset[UUID]


class HeldLeases:
    """At most `limit` leases. One whose images cannot be stored yet keeps its place, so memory is bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[UUID, HeldLease] = {}
        self._deferred: set[UUID] = set()
        self._changed = threading.Condition()

    def add(self, microbatch: Microbatch) -> None:
        with self._changed:
            self._held[microbatch.lease_id] = HeldLease(microbatch, frozenset(image.id for image in microbatch.images))

    def remove(self, lease_id: UUID) -> None:
        with self._changed:
            self._held.pop(lease_id, None)
            self._changed.notify_all()

    def defer_release(self, lease_id: UUID) -> None:
        """Remove a lease that could not be released; the heartbeat releases it as soon as Postgres answers."""
        with self._changed:
            self._deferred.add(lease_id)
        self.remove(lease_id)

    def deferred_releases(self) -> list[UUID]:
        with self._changed:
            return sorted(self._deferred)

    def confirm_released(self, lease_ids: Iterable[UUID]) -> None:
        """These deferred releases are done."""
        with self._changed:
            self._deferred.difference_update(lease_ids)

    def ids(self) -> list[UUID]:
        with self._changed:
            return sorted(self._held)

    def wanted(self, lease_id: UUID) -> frozenset[UUID]:
        """The ids of the images of this lease that are still wanted; none of a lease that was lost."""
        with self._changed:
            held = self._held.get(lease_id)
            return held.wanted if held else frozenset()

    def restrict(self, lease_id: UUID, wanted: Collection[UUID]) -> None:
        """Want no other images of this lease than these."""
        with self._changed:
            if held := self._held.get(lease_id):
                held.wanted &= frozenset(wanted)

    def apply_renewal(self, lease_ids: Collection[UUID], wanted: Mapping[UUID, Collection[UUID]]) -> None:
        """Take over the answer to a renewal of these leases; one that it does not name is lost."""
        for lease_id in lease_ids:
            self.restrict(lease_id, wanted.get(lease_id, ()))

    def cancel_jobs(self, job_ids: Collection[UUID]) -> None:
        with self._changed:
            for held in self._held.values():
                held.wanted -= {image.id for image in held.microbatch.images if image.job_id in job_ids}

    def wait_for_room(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._held) < self._limit, seconds)

    def wait_until_only(self, lease_id: UUID, seconds: float) -> bool:
        """Wait until no other lease than this is held."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held.keys() <= {lease_id}, seconds)


class State(Enum):
    CLAIMED = "claimed"  # the lease is held and the input images are being fetched; no attempt counts yet
    STARTED = "started"  # the lease has started; the images wait on the render thread, or are being rendered
    RENDERED = "rendered"  # the render thread has finished: `result` has the images, or why there are none


class InflightMicrobatch:
    def __init__(self, microbatch: Microbatch, inputs: PendingInputs, *, is_full: bool) -> None:
        self.microbatch = microbatch
        self.inputs = inputs
        self.is_full = is_full  # more images may wait than it could take
        self.images: tuple[Image, ...] = ()  # those that were still wanted when the lease started
        self.result: Future[RenderedMicrobatch] | None = None  # None until it is queued on the render thread
        self.step, self.steps = 0, 0  # of the current pipeline call
        self._is_started = False
        self._began = time.monotonic()
        self._expected_end = float("inf")
        self._chunk = (0.0, 1.0)  # the shares of the images before the current pipeline call, and in it

    @property
    def state(self) -> State:
        if not self._is_started:
            return State.CLAIMED
        return State.RENDERED if self.result and self.result.done() else State.STARTED

    def start(self, wanted: Collection[UUID]) -> None:
        """The lease has started, and of its images these are wanted."""
        self.images = tuple(image for image in self.microbatch.images if image.id in wanted)
        self._is_started = True

    def wait_until_rendered(self, seconds: float) -> bool:
        assert self.result
        return not wait_for([self.result], seconds).not_done

    def rendered(self) -> "RenderedMicrobatch":
        """The images, once it is rendered. Raises what ended the render thread's work: Interrupted, or a bug."""
        assert self.result
        return self.result.result()

    # The progress of the render thread

    def begin_render(self, expected_s: float | None) -> None:
        self._began = time.monotonic()
        self._expected_end = self._began + expected_s if expected_s is not None else float("inf")

    def begin_chunk(self, before: float, share: float) -> None:
        """The next pipeline call renders this share of the images, after that share was rendered before."""
        self._chunk = before, share

    def end_step(self, step: int, steps: int) -> None:
        now, (before, share) = time.monotonic(), self._chunk
        self.step, self.steps = step, steps
        done = before + share * step / steps
        self._expected_end = now + (now - self._began) / done * (1 - done)

    def seconds_left(self) -> float:
        """Infinite while nothing is known."""
        return self._expected_end - time.monotonic()


@dataclass(frozen=True)
class RenderedMicrobatch:
    """The results of the images of one lease that were still wanted when it started."""

    microbatch: Microbatch
    results: Sequence[tuple[Image, RenderedImage | RenderFailed]]
    seconds: float
    metadata: Mapping[str, str]  # for every file, beside its recipe and seed
    drawn_with: DrawnWith = field(default_factory=DrawnWith)
