"""Live pages: one look for all who watch the same screen, news only when there is some, and an end when it is over."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from api.live import page_streams
from api.live.page_streams import PageStreams
from common.errors import Unavailable


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_streams, "REST_S", 0.01)


class Screen:
    def __init__(self) -> None:
        self.text, self.looks = "one", 0

    def draw(self) -> str:
        self.looks += 1
        if not self.text:
            raise Unavailable("The database is away.")
        return self.text


async def page_of(stream: AsyncGenerator[bytes]) -> str:
    async for message in stream:
        if message.startswith(b"event: page"):
            return message.decode().partition("data: ")[2].strip()
    raise AssertionError("the stream ended")


def test_all_who_watch_a_screen_share_its_drawing() -> None:
    async def story() -> None:
        boards, screen = PageStreams(), Screen()
        streams = [boards.watch("screen", screen.draw) for _ in range(50)]
        assert [await page_of(stream) for stream in streams] == ["one"] * 50
        before = screen.looks
        screen.text = "two"
        assert await asyncio.gather(*map(page_of, streams)) == ["two"] * 50
        assert screen.looks - before < 50
        for stream in streams:
            await stream.aclose()

    asyncio.run(story())


def test_what_has_not_changed_is_not_sent_again() -> None:
    async def story() -> None:
        boards, screen = PageStreams(), Screen()
        stream = boards.watch("screen", screen.draw)
        assert await page_of(stream) == "one"
        seen = screen.looks
        waiting = asyncio.ensure_future(page_of(stream))
        while screen.looks < seen + 3:
            await asyncio.sleep(0)
        assert not waiting.done()
        screen.text = "two"
        assert await waiting == "two"
        await stream.aclose()

    asyncio.run(story())


def test_while_the_database_is_away_the_page_stands_and_then_goes_on() -> None:
    async def story() -> None:
        boards, screen = PageStreams(), Screen()
        stream = boards.watch("screen", screen.draw)
        assert await page_of(stream) == "one"
        screen.text = ""
        seen = screen.looks
        while screen.looks < seen + 2:
            await asyncio.sleep(0)
        screen.text = "back"
        assert await page_of(stream) == "back"
        await stream.aclose()

    asyncio.run(story())


def test_nobody_looks_any_more_and_nothing_is_drawn() -> None:
    async def story() -> None:
        boards, screen = PageStreams(), Screen()
        stream = boards.watch("screen", screen.draw)
        await page_of(stream)
        await stream.aclose()
        task = boards._task
        assert task
        async with asyncio.timeout(10):
            await task
        seen = screen.looks
        again = boards.watch("screen", screen.draw)
        assert await page_of(again) == "one"
        assert screen.looks > seen
        await again.aclose()

    asyncio.run(story())


def test_a_server_that_stops_sends_everybody_away() -> None:
    async def story() -> None:
        boards, screen = PageStreams(), Screen()
        stream = boards.watch("screen", screen.draw)
        await page_of(stream)
        boards.close()
        async with asyncio.timeout(10):
            assert [message async for message in stream if message.startswith(b"event")] == []

    asyncio.run(story())
