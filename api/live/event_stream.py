"""Responses of server-sent events: the stream of a job, and a stream that ends when its client stops reading."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from uuid import UUID

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.live.job_events import EventId
from api.live.job_watcher import JobWatcher

PING_S = 15.0
STALLED_S = 10.0  # a client that reads nothing for so long is disconnected
RETRY = format_sse_event(retry=1000)  # milliseconds until a disconnected client reconnects
ABORT = "huafang.abort"  # the ASGI extension that closes a connection at once: see `api.__main__`


class EventStream(StreamingResponse):
    """Queues nothing for a client that does not read; what was sent to it stays in memory until it is disconnected."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], on_end: Callable[[], None] = lambda: None) -> None:
        self._events = events
        self._on_end = on_end
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED_S):
                    await send(message)
            except TimeoutError:
                scope["extensions"][ABORT]["now"]()

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            self._on_end()
            await self._events.aclose()


async def follow(watcher: JobWatcher, job_id: UUID, event_id: EventId, base_url: str) -> AsyncGenerator[bytes]:
    """The events after this one, as they come. A client that reads slowly gets fewer, and misses only progress."""
    yield RETRY
    progress = None
    with watcher.watch(job_id) as subscription:
        while not subscription.closed:
            if events := subscription.watched.events(base_url):
                latest = subscription.watched.progress
                new, event_id = events.since(event_id, latest if latest is not progress else None)
                progress = latest
                if new:
                    yield new
                if events.has_ended:
                    return
            if not await subscription.wait(PING_S):
                yield KEEPALIVE_COMMENT
