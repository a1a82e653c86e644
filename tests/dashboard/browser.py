"""Debian's Chromium, driven by Playwright; and visits to the dashboard during which nothing may go wrong unnoticed.

A visit fails its test when a page complains on the console (what its Content-Security-Policy forbids does so too), when
a script of it throws, when something that it asks for is refused or missing, or when it asks any host but the farm and
its image store. Knows no screen.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    StorageState,
    expect,
    sync_playwright,
)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 10_000

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

ABORTED = "net::ERR_ABORTED"  # by the page itself: it closed its stream, or went elsewhere
REFUSED = "Failed to load resource"  # what the console says of it; `_answered` and `_failed` know what


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS + QUIET)
        yield browser
        browser.close()


@dataclass
class Visit:
    """What a page does wrong while somebody looks at it. `refusals`: the statuses that are right there."""

    hosts: frozenset[str]
    refusals: Collection[int] = ()
    troubles: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._note(True, f"uncaught: {error}"))
        page.on("request", self._asked)
        page.on("response", self._answered)
        page.on("requestfailed", self._failed)

    def _said(self, message: ConsoleMessage) -> None:
        is_trouble = message.type in ("error", "warning") and not message.text.startswith(REFUSED)
        self._note(is_trouble, f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        address = urlsplit(request.url)
        is_ours = address.scheme in ("data", "blob") or address.netloc in self.hosts
        self._note(not is_ours, f"asked another host: {request.url}")

    def _answered(self, response: Response) -> None:
        is_trouble = response.status >= 400 and response.status not in self.refusals
        self._note(is_trouble, f"{response.status} from {response.url}")

    def _failed(self, request: Request) -> None:
        self._note(request.failure != ABORTED, f"{request.failure} at {request.url}")

    def _note(self, is_trouble: bool, text: str) -> None:
        if is_trouble:
            self.troubles.append(text)


@contextmanager
def visit(
    browser: Browser,
    url: str,
    store: str,
    *,
    language: str = "en",
    session: StorageState | None = None,
    refusals: Collection[int] = (),
    hosts: Collection[str] = (),
    **look: Any,
) -> Iterator[Page]:
    """A page of a browser that is fresh but for its session, and asks for this language. Nothing may go wrong on it."""
    context = browser.new_context(
        base_url=url,
        locale=language,
        storage_state=session,
        **{"viewport": DESK, "reduced_motion": "reduce"} | look,
    )
    watched = Visit(frozenset({urlsplit(url).netloc, urlsplit(store).netloc, *hosts}), refusals)
    try:
        yield watched_page(context, watched)
    finally:
        context.close()
    assert not watched.troubles, "\n".join(dict.fromkeys(watched.troubles))


def watched_page(context: BrowserContext, watched: Visit) -> Page:
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    watched.watch(page)
    return page
