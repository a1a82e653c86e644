"""Requests a minute and open streams of each tenant, as one process of the API counts them.

A minute begins with the first request after the one before has ended. Several processes count each for itself: with two
of them, a tenant may send twice as many. Kept in memory only.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from uuid import UUID

from api import sentence
from api.limits.quota import MINUTE_S, Quota
from common.accounts.limits import Limits
from common.errors import LimitReached
from common.sentences import Sentence

REMEMBERED = 10_000  # tenants
STREAM_RETRY_S = 10


@dataclass
class Minute:
    began: float
    requests: int = 0


class Requests:
    """`clock`: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minutes: OrderedDict[UUID, Minute] = OrderedDict()
        self._streams = Counter[UUID]()
        self._lock = Lock()  # some routes run in threads

    def count(self, tenant_id: UUID, quota: Quota) -> None:
        """Count a request, and note what remains. Raises LimitReached, and does not count it, beyond the limit."""
        allowed = quota.limits.requests_a_minute
        if allowed is None:
            return
        with self._lock:
            minute, now = self._minute(tenant_id), self._clock()
            resets_s = math.ceil(minute.began + MINUTE_S - now)
            if minute.requests >= allowed:
                words = sentence("limit_requests_a_minute", allowed=allowed)
                raise _reached(words, "requests_a_minute", minute.requests, allowed, resets_s)
            minute.requests += 1
        quota.remaining["requests_a_minute"] = allowed - minute.requests, resets_s

    @contextmanager
    def streaming(self, tenant_id: UUID, limits: Limits) -> Iterator[None]:
        """While a wait is open. Raises LimitReached beyond the limit."""
        close = self.open_stream(tenant_id, limits)
        try:
            yield
        finally:
            close()

    def open_stream(self, tenant_id: UUID, limits: Limits) -> Callable[[], None]:
        """Count a stream as open until what is returned is called. Raises LimitReached beyond the limit."""
        with self._lock:
            used, allowed = self._streams[tenant_id], limits.open_streams
            if allowed is not None and used >= allowed:
                words = sentence("limit_open_streams", used=used, allowed=allowed)
                raise _reached(words, "open_streams", used, allowed, STREAM_RETRY_S)
            self._streams[tenant_id] += 1
        return partial(self._close_stream, tenant_id)

    def used(self, tenant_id: UUID) -> tuple[int, int, int]:
        """Requests in the current minute, in how many seconds it ends, and open streams."""
        with self._lock:
            minute = self._minute(tenant_id)
            return minute.requests, math.ceil(minute.began + MINUTE_S - self._clock()), self._streams[tenant_id]

    def _close_stream(self, tenant_id: UUID) -> None:
        with self._lock:
            self._streams[tenant_id] -= 1
            self._streams += Counter()  # drops the tenants that have none

    def _minute(self, tenant_id: UUID) -> Minute:
        now, found = self._clock(), self._minutes.get(tenant_id)
        if found is None or now >= found.began + MINUTE_S:
            found = self._minutes[tenant_id] = Minute(now)
        self._minutes.move_to_end(tenant_id)
        if len(self._minutes) > REMEMBERED:
            self._minutes.popitem(last=False)
        return found


def _reached(words: Sentence, limit: str, used: int, allowed: int, retry_after_s: int) -> LimitReached:
    """Nobody need come back for a limit of nothing."""
    return LimitReached(
        words, limit=limit, used=used, allowed=allowed, retry_after_s=retry_after_s if allowed else None
    )
