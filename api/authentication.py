"""Who sends a request: found from its headers, before a byte of its body is read. Knows no route and no session.

Lookups have threads of their own: REGULARS for keys that were valid lately, STRANGERS for all others, so that wrong
keys delay nobody's work. Nobody waits for such a thread longer than QUEUE_S.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param
from prometheus_client import Counter
from sqlalchemy import Connection, Engine

from api import sentence
from common.accounts.keys import Caller, authenticate
from common.db import transaction
from common.errors import Unauthorized, Unavailable
from common.log import log_event
from common.sentences import Sentence

QUEUE_S = 0.5
ANSWER_S = 0.9  # until who waits for a lookup is refused, though it has begun
REGULARS, STRANGERS = 3, 1  # threads, each with a connection
REFUSED_S = 1.0  # a wrong key is not looked up again so soon
REMEMBERED = 10_000  # keys
LINES_A_SECOND = 10  # of failures, in the log

Reason = Literal["no_key", "unknown_key", "bad_session", "used_link"]
Found = TypeVar("Found")


class Once(Generic[Found]):
    """What `find` finds, or the error that it raises: at the first call, and the same at every other."""

    def __init__(self, find: Callable[[], Awaitable[Found]]) -> None:
        self._find = find
        self._outcome: tuple[Found] | Exception | None = None

    async def __call__(self) -> Found:
        if self._outcome is None:
            try:
                self._outcome = (await self._find(),)
            except Exception as error:
                self._outcome = error
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome[0]


class Failures:
    """Counts failed authentications, and logs them with the client's address; under a flood, some of them."""

    def __init__(self) -> None:
        self.counter = Counter(
            "huafang_authentication_failures", "Requests without a valid key or session.", ["reason"], registry=None
        )
        self._second = 0
        self._lines = 0
        self._unlogged = 0

    def note(self, request: Request, reason: Reason) -> None:
        self.counter.labels(reason).inc()
        if (second := int(time.monotonic())) != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._unlogged += 1
            return
        log_event(
            "authentication_failed",
            client=address_of(request),
            reason=reason,
            path=request.url.path[:200],
            request=request.state.request_id,
            unlogged=self._unlogged or None,
        )
        self._unlogged = 0


def address_of(request: Request) -> str | None:
    """The client's, as HUAFANG_TRUSTED_PROXIES says whose headers tell it."""
    return request.client.host if request.client else None


class Lookups:
    """The callers of requests, from the database."""

    def __init__(self, engine: Engine, pepper: str) -> None:
        self.failures = Failures()
        self._engine = engine
        self._pepper = pepper
        self._regulars = ThreadPoolExecutor(REGULARS, "lookup")
        self._strangers = ThreadPoolExecutor(STRANGERS, "lookup-stranger")
        self._valid: OrderedDict[bytes, None] = OrderedDict()  # hashes of keys
        self._refused: OrderedDict[bytes, tuple[float, Sentence]] = OrderedDict()  # when, and why
        self._lookups: dict[bytes, asyncio.Task[Caller]] = {}

    async def by_header(self, request: Request) -> Caller:
        """The holder of the key in the header `Authorization`. Raises Unauthorized."""
        scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() != "bearer" or not secret:
            self.failures.note(request, "no_key")
            raise Unauthorized(sentence("key_missing"))
        return await self.by_key(request, secret)

    async def by_key(self, request: Request, secret: str) -> Caller:
        """The holder of this key. Raises Unauthorized."""
        hashed = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        try:
            caller = await self._by_hash(hashed, secret)
        except Unauthorized:
            self.failures.note(request, "unknown_key")
            raise
        return replace(caller, request_id=request.state.request_id, address=address_of(request))

    async def run(self, find: Callable[[Connection], Found]) -> Found:
        """What `find` reads, for who is no stranger: the owner of a signed session."""
        return await self._in_thread(self._regulars, find)

    def close(self) -> None:
        for threads in (self._regulars, self._strangers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _by_hash(self, hashed: bytes, secret: str) -> Caller:
        """Requests of one key that come at once share a lookup."""
        refused = self._refused.get(hashed)
        if refused and time.monotonic() - refused[0] < REFUSED_S:
            raise Unauthorized(refused[1])
        lookup = self._lookups.get(hashed)
        if lookup is None:
            lookup = self._lookups[hashed] = asyncio.create_task(self._look_up(hashed, secret))
            lookup.add_done_callback(lambda done: self._forget(hashed, done))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.shield(lookup)
        except TimeoutError:
            raise Unavailable(sentence("too_busy")) from None

    def _forget(self, hashed: bytes, done: "asyncio.Task[Caller]") -> None:
        del self._lookups[hashed]
        if not done.cancelled():
            done.exception()  # seen: whoever asked may be gone

    async def _look_up(self, hashed: bytes, secret: str) -> Caller:
        threads = self._regulars if hashed in self._valid else self._strangers
        try:
            found = await self._in_thread(threads, lambda connection: authenticate(connection, secret, self._pepper))
        except Unauthorized as error:
            self._valid.pop(hashed, None)
            _remember(self._refused, hashed, (time.monotonic(), error.message))
            raise
        _remember(self._valid, hashed, None)
        return found

    async def _in_thread(self, threads: ThreadPoolExecutor, find: Callable[[Connection], Found]) -> Found:
        def look_up() -> Found:
            with transaction(self._engine) as connection:
                return find(connection)

        waiting = threads.submit(look_up)
        found = asyncio.wrap_future(waiting)
        try:
            async with asyncio.timeout(QUEUE_S):
                return await asyncio.shield(found)
        except TimeoutError:
            if waiting.cancel():
                raise Unavailable(sentence("too_busy")) from None
        return await found  # it has begun


def _remember(keys: OrderedDict[bytes, Found], hashed: bytes, value: Found) -> None:
    keys[hashed] = value
    keys.move_to_end(hashed)
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)
