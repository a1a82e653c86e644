"""The claims of one worker, and what it remembers from one to the next. The choice itself is made by `common.queue`.

charges    of its claims are collected after the COMMIT, at most once a second; until then its claims count them
heads      where each lane is read from. Behind an old snapshot the index keeps an entry of every image that was
           claimed since, and a claim would step over them all. A full read finds what was given back before a head
"""

import time
from collections.abc import Callable, Mapping
from uuid import UUID

from sqlalchemy import Engine as Database

from common.db import transaction
from common.errors import Unavailable
from common.failures import new_reference
from common.log import log_event
from common.queue import charges, claim
from common.queue.charges import Charges
from common.queue.claim import Memory, Microbatch, Offer

COLLECT_EVERY_S = 1.0
FULL_READ_EVERY_S = 3.0
FULL_READ_SHARE = 0.05  # of the time: one takes long when an old snapshot has been open for hours
LOWER_TIER_EVERY = 20  # one microbatch in so many goes to a lower tier
LONGEST_REST_S = 10.0  # between two full reads nevertheless


class Claimer:
    """For one thread at a time."""

    def __init__(
        self,
        worker_id: UUID,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        name: str = "",
        alive_s: float = 15,
    ) -> None:
        """`name` and `alive_s`: see `Offer`."""
        self._worker_id = worker_id
        self._database = database
        self._clock = clock
        self._name = name
        self._alive_s = alive_s
        self._claims = 0
        self._unpaid: Charges = {}
        self._heads: dict[int, UUID] = {}
        self._collect_at = self._full_read_at = clock()

    def offer(self, capacity: Mapping[str, int], resident: tuple[str, ...], patience_s: float) -> Offer:
        """What this worker can render now."""
        lower_tier = self._claims % LOWER_TIER_EVERY == LOWER_TIER_EVERY - 1
        return Offer(self._worker_id, capacity, self._name, self._alive_s, resident, patience_s, lower_tier)

    def claim(self, offer: Offer, lease_id: UUID, lease_s: float) -> Microbatch | None:
        """Claim the next microbatch, as `common.queue.claim` does. Raises Unavailable; one may be claimed then."""
        began = self._clock()
        if began >= self._full_read_at:
            self._heads = {}
        with transaction(self._database) as connection:
            microbatch = None
            if self._heads:
                microbatch = claim.claim(connection, offer, lease_id, lease_s, Memory(self._unpaid, self._heads))
            is_full_read = microbatch is None
            if is_full_read:
                microbatch = claim.claim(connection, offer, lease_id, lease_s, Memory(self._unpaid))
        if is_full_read:
            self._heads = {}
            took_s = self._clock() - began
            rest_s = min(max(FULL_READ_EVERY_S, took_s / FULL_READ_SHARE), LONGEST_REST_S)
            self._full_read_at = began + rest_s
        if microbatch:
            self._claims += 1
            self._unpaid = charges.add(self._unpaid, microbatch.charges)
            self._heads.update(microbatch.heads)
        return microbatch

    def collect(self) -> None:
        """Charge the tenants for what was claimed, if the last time is long enough ago. Raises nothing.

        A tenant whose row is locked is charged the next time.
        """
        if not self._unpaid or self._clock() < self._collect_at:
            return
        self._collect_at = self._clock() + COLLECT_EVERY_S
        try:
            with transaction(self._database) as connection:
                paid = charges.collect(connection, self._unpaid)
        except Unavailable:
            return
        except Exception:  # nothing of a microbatch is at fault
            log_event("charge_failed", exc_info=True, worker=self._worker_id, reference=new_reference())
            paid = self._unpaid
        self._unpaid = {tenant: charge for tenant, charge in self._unpaid.items() if tenant not in paid}
