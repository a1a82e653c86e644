"""Requests of which a tenant has one at a time: another one waits, and is refused when its turn does not come."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

import anyio

from common.errors import LimitReached
from common.sentences import Sentence


class Turns:
    def __init__(self, wait_s: float, refusal: Sentence) -> None:
        self.wait_s = wait_s
        self._refusal = refusal
        self._locks = WeakValueDictionary[UUID, anyio.Lock]()

    @asynccontextmanager
    async def of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Wait for the tenant's earlier requests. Raises LimitReached after `wait_s` seconds."""
        lock = self._locks.setdefault(tenant_id, anyio.Lock())
        try:
            with anyio.fail_after(self.wait_s):
                await lock.acquire()
        except TimeoutError:
            raise LimitReached(self._refusal) from None
        try:
            yield
        finally:
            lock.release()
