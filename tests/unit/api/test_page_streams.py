"""Live pages: one rendering for all who have the same view open, messages only when it has changed, and an end."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from fastapi.sse import KEEPALIVE_COMMENT

from api.live import page_streams
from api.live.page_streams import PageStreams
from common.errors import Unavailable


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_streams, "REST_S", 0.01)


class View:
    def __init__(self) -> None:
        self.text, self.renders = "one", 0

    def render(self) -> str:
        self.renders += 1
        if not self.text:
            raise Unavailable("The database is away.")
        return self.text


async def page_of(stream: AsyncGenerator[bytes]) -> str:
    async for message in stream:
        if message.startswith(b"event: page"):
            return message.decode().partition("data: ")[2].strip()
    raise AssertionError("the stream ended")


def test_all_who_watch_a_view_share_its_rendering() -> None:
    async def story() -> None:
        pages, view = PageStreams(), View()
        streams = [pages.watch("view", view.render) for _ in range(50)]
        assert [await page_of(stream) for stream in streams] == ["one"] * 50
        before = view.renders
        view.text = "two"
        assert await asyncio.gather(*map(page_of, streams)) == ["two"] * 50
        assert view.renders - before < 50
        for stream in streams:
            await stream.aclose()

    asyncio.run(story())


def test_what_has_not_changed_is_not_sent_again() -> None:
    async def story() -> None:
        pages, view = PageStreams(), View()
        stream = pages.watch("view", view.render)
        assert await page_of(stream) == "one"
        seen = view.renders
        waiting = asyncio.ensure_future(page_of(stream))
        while view.renders < seen + 3:
            await asyncio.sleep(0)
        assert not waiting.done()
        view.text = "two"
        assert await waiting == "two"
        await stream.aclose()

    asyncio.run(story())


def test_while_the_database_is_unavailable_the_page_stays_and_then_goes_on() -> None:
    async def story() -> None:
        pages, view = PageStreams(), View()
        stream = pages.watch("view", view.render)
        assert await page_of(stream) == "one"
        view.text = ""
        seen = view.renders
        while view.renders < seen + 2:
            await asyncio.sleep(0)
        view.text = "back"
        assert await page_of(stream) == "back"
        await stream.aclose()

    asyncio.run(story())


def test_a_view_that_nobody_has_open_is_not_rendered() -> None:
    async def story() -> None:
        pages, view = PageStreams(), View()
        stream = pages.watch("view", view.render)
        await page_of(stream)
        await stream.aclose()
        task = pages._task
        assert task
        async with asyncio.timeout(60):
            await task
        seen = view.renders
        again = pages.watch("view", view.render)
        assert await page_of(again) == "one"
        assert view.renders > seen
        await again.aclose()

    asyncio.run(story())


def test_a_server_that_stops_ends_all_streams() -> None:
    async def story() -> None:
        pages, view = PageStreams(), View()
        stream = pages.watch("view", view.render)
        await page_of(stream)
        pages.close()
        async with asyncio.timeout(60):
            assert [message async for message in stream if message.startswith(b"event")] == []

    asyncio.run(story())


def test_a_view_that_fails_for_an_unforeseen_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        pages, renders = PageStreams(), 0

        def render() -> str:
            nonlocal renders
            renders += 1
            if renders == 5:
                return "back"
            raise ValueError(renders)

        stream = pages.watch("view", render)
        assert await page_of(stream) == "back"
        while renders < 8:
            await asyncio.sleep(0)
        await stream.aclose()

    asyncio.run(story())
    assert [record.getMessage().split()[0] for record in caplog.records if record.exc_info] == 2 * ["request_failed"]


def test_a_stream_ends_after_five_minutes_though_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser reconnects, and its session is checked again."""
    monkeypatch.setattr(page_streams, "PING_S", 0.01)

    async def story() -> None:
        loop, later = asyncio.get_running_loop(), 0.0
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + later)
        pages, view = PageStreams(), View()
        stream = pages.watch("view", view.render)
        assert await page_of(stream) == "one"
        later = page_streams.LASTS_S - 60
        assert await anext(stream) == KEEPALIVE_COMMENT
        later = page_streams.LASTS_S
        async with asyncio.timeout(60):
            assert {message async for message in stream} <= {KEEPALIVE_COMMENT}

    asyncio.run(story())
