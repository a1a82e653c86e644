"""A response of server-sent events that ends when its client stops reading. Does not know what the events say."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

STALLED_S = 10.0  # a client that reads nothing for so long is disconnected
ABORT = "huafang.abort"  # the ASGI extension that closes a connection at once: see `api.__main__`


class EventStream(StreamingResponse):
    """Queues nothing for a client that does not read; what was sent to it stays in memory until it is disconnected."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        self._events = events
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
            await self._events.aclose()
