"""Live pages: what a screen shows, drawn again every second and sent to all who look at it, when it has changed.

    boards ──► look (in a thread) ──► draw ──► another text than before? ──► every watcher's stream

However many look at the same screen, it is read and drawn once. All of it is one task, which looks at one board after
the other and then rests for at least as long as that took: two hundred dashboards make the pages slower, not the API.
Knows no screen, and no words.
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
LASTS_S = 300.0  # then the browser comes again by itself, and has to show that its session is still good
RETRY = format_sse_event(retry=1000)

Draw = Callable[[], str]


class PageStream:
    """A screen as it is shown to some visitors: the same to all of them."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.text: str | None = None
        self.message = b""
        self.watchers: set[asyncio.Event] = set()

    def show(self, text: str) -> None:
        if text != self.text:
            self.text, self.message = text, format_sse_event(event="page", data_str=text)
            self.tell()

    def tell(self) -> None:
        for watcher in self.watchers:
            watcher.set()


class PageStreams:
    """Those that somebody looks at."""

    def __init__(self) -> None:
        self._boards: dict[Any, PageStream] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def watch(self, key: Any, draw: Draw) -> AsyncGenerator[bytes]:
        """The stream of a screen. `key`: all that its text depends on; `draw` may block, and runs in a thread."""
        yield RETRY
        board, news = self._boards.setdefault(key, PageStream(draw)), asyncio.Event()
        board.watchers.add(news)
        if board.message:
            news.set()
        self._begin()
        clock = asyncio.get_running_loop().time
        until = clock() + LASTS_S
        try:
            while not self._closed and clock() < until:
                try:
                    async with asyncio.timeout(PING_S):
                        await news.wait()
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
                    continue
                news.clear()
                if board.message:
                    yield board.message
        finally:
            board.watchers.discard(news)
            if not board.watchers and self._boards.get(key) is board:
                del self._boards[key]

    def close(self) -> None:
        """Send everybody away: a server that stops has no time to wait."""
        self._closed = True
        for board in self._boards.values():
            board.tell()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_drawing())

    async def _keep_drawing(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._boards and not self._closed:
            began = clock()
            for board in list(self._boards.values()):
                await self._draw(board)
            await asyncio.sleep(max(REST_S, clock() - began))

    async def _draw(self, board: PageStream) -> None:
        if not board.watchers:
            return
        try:
            board.show(await run_in_threadpool(board.draw))
        except Error:
            return  # the page stands as it was; whoever reloads it is told
        except Exception:
            log_event("request_failed", exc_info=True, path="a live page")
