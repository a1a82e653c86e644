"""Live pages: what a view shows is rendered every second and, when it has changed, sent to all who have it open.

    PageStreams ──► render (in a thread) ──► another text than before? ──► every subscriber's stream

However many have the same view open, it is read and rendered once. One task renders one view after the other and then
rests for at least as long as that took: two hundred open pages make the pages slower, not the API. Knows no view and no
template.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from common.errors import Error
from common.log import log_event

REST_S = 1.0
PING_S = 15.0
LASTS_S = 300.0  # then the browser reconnects, and its session is checked again
RETRY = format_sse_event(retry=1000)

Render = Callable[[], str]


class PageStream:
    """A view as one tenant, role and language sees it, and the streams that send it."""

    def __init__(self, render: Render) -> None:
        self.render = render
        self.text: str | None = None
        self.message = b""
        self.subscribers: set[asyncio.Event] = set()
        self.fails = False

    def show(self, text: str) -> None:
        if text != self.text:
            self.text, self.message = text, format_sse_event(event="page", data_str=text)
            self.notify()

    def notify(self) -> None:
        for subscriber in self.subscribers:
            subscriber.set()


class PageStreams:
    """The views that browsers have open."""

    def __init__(self) -> None:
        self._streams: dict[Any, PageStream] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def watch(self, key: Any, render: Render) -> AsyncGenerator[bytes]:
        """The stream of a view. `key`: all that its text depends on; `render` may block, and runs in a thread."""
        yield RETRY
        stream, changed = self._streams.setdefault(key, PageStream(render)), asyncio.Event()
        stream.subscribers.add(changed)
        if stream.message:
            changed.set()
        self._start()
        clock = asyncio.get_running_loop().time
        until = clock() + LASTS_S
        try:
            while not self._closed and clock() < until:
                try:
                    async with asyncio.timeout(PING_S):
                        await changed.wait()
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
                    continue
                changed.clear()
                if stream.message:
                    yield stream.message
        finally:
            stream.subscribers.discard(changed)
            if not stream.subscribers and self._streams.get(key) is stream:
                del self._streams[key]

    def close(self) -> None:
        """End all streams: a server that stops does not wait for them."""
        self._closed = True
        for stream in self._streams.values():
            stream.notify()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_rendering())

    async def _keep_rendering(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._streams and not self._closed:
            began = clock()
            for stream in list(self._streams.values()):
                await self._render(stream)
            await asyncio.sleep(max(REST_S, clock() - began))

    async def _render(self, stream: PageStream) -> None:
        if not stream.subscribers:
            return
        try:
            stream.show(await run_in_threadpool(stream.render))
            stream.fails = False
        except Error:
            return  # the page stays as it was; a reload shows the error
        except Exception:
            if not stream.fails:  # it is rendered every second
                log_event("request_failed", exc_info=True, path="a live page")
            stream.fails = True
