"""The leases that this process holds, and which of their images are still wanted. In memory only; safe between threads.

The engine takes and lets go; the heartbeat and the news of cancellations make fewer images wanted. An image that is not
wanted never becomes wanted again under the same lease.
"""

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from uuid import UUID

from common.errors import RenderFailed
from common.queue.claim import Image, Microbatch
from worker.pipelines.base import RenderedImage
from worker.render.input_images import PendingInputs


@dataclass
class HeldLease:
    microbatch: Microbatch
    wanted: frozenset[UUID]


class HeldLeases:
    """At most `limit` leases: a picture that cannot be stored yet keeps its place, so memory is bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[UUID, HeldLease] = {}
        self._abandoned: set[UUID] = set()
        self._changed = threading.Condition()

    def take(self, microbatch: Microbatch) -> None:
        with self._changed:
            self._held[microbatch.lease_id] = HeldLease(microbatch, frozenset(image.id for image in microbatch.images))

    def let_go(self, lease_id: UUID) -> None:
        with self._changed:
            self._held.pop(lease_id, None)
            self._changed.notify_all()

    def abandon(self, lease_id: UUID) -> None:
        """Let go of a lease that could not be given back; the heartbeat does it as soon as Postgres answers."""
        with self._changed:
            self._abandoned.add(lease_id)
        self.let_go(lease_id)

    def abandoned(self) -> list[UUID]:
        with self._changed:
            return sorted(self._abandoned)

    def given_back(self, lease_ids: Iterable[UUID]) -> None:
        with self._changed:
            self._abandoned.difference_update(lease_ids)

    def leases(self) -> list[UUID]:
        with self._changed:
            return sorted(self._held)

    def wanted(self, lease_id: UUID) -> frozenset[UUID]:
        """The images of this lease that somebody still waits for; none of a lease that was lost."""
        with self._changed:
            holding = self._held.get(lease_id)
            return holding.wanted if holding else frozenset()

    def keep(self, lease_id: UUID, wanted: Collection[UUID]) -> None:
        """Of this lease no more than these images are wanted."""
        with self._changed:
            if holding := self._held.get(lease_id):
                holding.wanted &= frozenset(wanted)

    def renewed(self, asked: Collection[UUID], answer: Mapping[UUID, Collection[UUID]]) -> None:
        """What Postgres said to a renewal: a lease that it does not name is lost."""
        for lease_id in asked:
            self.keep(lease_id, answer.get(lease_id, ()))

    def cancelled(self, job_ids: Collection[UUID]) -> None:
        with self._changed:
            for holding in self._held.values():
                gone = {image.id for image in holding.microbatch.images if image.job_id in job_ids}
                holding.wanted -= gone

    def wait_for_room(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._held) < self._limit, seconds)

    def wait_until_only(self, lease_id: UUID, seconds: float) -> bool:
        """Wait until all but this lease have landed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held.keys() <= {lease_id}, seconds)

    def wait_until_empty(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)


class InflightMicrobatch:
    """One microbatch between its claim and its last denoising step."""

    def __init__(self, microbatch: Microbatch, is_full: bool, grounds: PendingInputs) -> None:
        self.microbatch = microbatch
        self.grounds = grounds  # what its images are painted over
        self.is_full = is_full  # more may wait than it could take
        self.images: tuple[Image, ...] | None = None  # that were wanted when the lease started; None: not started
        self.painting: Future[RenderedMicrobatch] | None = None  # None: not yet given to the brush
        self.step, self.steps = 0, 0
        self._began = time.monotonic()
        self._ends = float("inf")  # as far as one can tell
        self._done = 0.0  # of all of it
        self._part = 1.0  # of all of it is what the current call of the painter paints

    def begin(self, expected_s: float | None) -> None:
        self._began = time.monotonic()
        self._ends = self._began + expected_s if expected_s is not None else float("inf")

    def begin_part(self, done: float, part: float) -> None:
        self._done, self._part = done, part

    def advance(self, step: int, steps: int) -> None:
        now = time.monotonic()
        self.step, self.steps = step, steps
        done = self._done + self._part * step / steps
        self._ends = now + (now - self._began) / done * (1 - done)

    def seconds_left(self) -> float:
        return self._ends - time.monotonic()


@dataclass(frozen=True)
class RenderedMicrobatch:
    """What became of the images of one lease that were still wanted when it started."""

    microbatch: Microbatch
    pictures: Sequence[tuple[Image, RenderedImage | RenderFailed]]
    seconds: float
    texts: Mapping[str, str]  # that every file carries, beside its recipe and seed
