"""The leases that this process holds, and which of their images are still wanted. In memory only; safe between threads.

The engine takes and lets go; the heartbeat and the news of cancellations make fewer images wanted. An image that is not
wanted never becomes wanted again under the same lease.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from common.queue.claim import Microbatch


@dataclass
class Holding:
    microbatch: Microbatch
    wanted: frozenset[UUID]


class Holdings:
    """At most `limit` leases: a picture that cannot be stored yet keeps its place, so memory is bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[UUID, Holding] = {}
        self._abandoned: set[UUID] = set()
        self._changed = threading.Condition()

    def take(self, microbatch: Microbatch) -> None:
        with self._changed:
            self._held[microbatch.lease_id] = Holding(microbatch, frozenset(image.id for image in microbatch.images))

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
