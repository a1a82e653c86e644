"""Debian's Chromium, driven by Playwright; and visits to the dashboard that fail on every error of a page.

A visit fails its test when a page logs an error or a warning (violations of its Content-Security-Policy are logged),
throws in a script, gets an error for a request, or sends a request to a host other than the farm and its image store.
Knows no view.
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
TIMEOUT_MS = 10_000

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

ABORTED = "net::ERR_ABORTED"  # by the page itself: it closed its stream or navigated
REFUSED = "Failed to load resource"  # on the console; `_on_response` and `_on_failure` have the details


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS + QUIET)
        yield browser
        browser.close()


@dataclass
class PageErrors:
    """The errors of a page. `refusals`: the error statuses that are expected there."""

    hosts: frozenset[str]
    refusals: Collection[int] = ()
    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._add_if(True, f"uncaught: {error}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)
        page.on("requestfailed", self._on_failure)

    def _on_console(self, message: ConsoleMessage) -> None:
        is_error = message.type in ("error", "warning") and not message.text.startswith(REFUSED)
        self._add_if(is_error, f"console: {message.text}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        is_ours = address.scheme in ("data", "blob") or address.netloc in self.hosts
        self._add_if(not is_ours, f"request to another host: {request.url}")

    def _on_response(self, response: Response) -> None:
        is_error = response.status >= 400 and response.status not in self.refusals
        self._add_if(is_error, f"{response.status} from {response.url}")

    def _on_failure(self, request: Request) -> None:
        self._add_if(request.failure != ABORTED, f"{request.failure} at {request.url}")

    def _add_if(self, is_error: bool, text: str) -> None:
        if is_error:
            self.errors.append(text)


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
    **options: Any,
) -> Iterator[Page]:
    """A page in a new browser context with this session and language. Raises AssertionError if it had errors."""
    context = browser.new_context(
        base_url=url,
        locale=language,
        storage_state=session,
        **{"viewport": DESKTOP, "reduced_motion": "reduce"} | options,
    )
    page_errors = PageErrors(frozenset({urlsplit(url).netloc, urlsplit(store).netloc, *hosts}), refusals)
    try:
        yield _watched_page(context, page_errors)
    finally:
        context.close()
    assert not page_errors.errors, "\n".join(dict.fromkeys(page_errors.errors))


def _watched_page(context: BrowserContext, page_errors: PageErrors) -> Page:
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page_errors.watch(page)
    return page
