"""Pages update themselves, by their stream or by polling, and do neither while they are hidden."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Request, expect

from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")

HIDE = """isHidden => {
  Object.defineProperty(document, "hidden", {configurable: true, get: () => isHidden});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def is_stream(request: Request) -> bool:
    return "/dashboard/live/" in request.url


@contextmanager
def without_reload(page: Page) -> Iterator[None]:
    page.evaluate("window.loaded = 'the same page'")
    yield
    assert page.evaluate("window.loaded") == "the same page"


def test_a_job_appears_on_an_open_page_and_ends_there(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/jobs")
    with without_reload(page):
        farm.submit("刚刚提交的圆形")
        row = page.get_by_role("row").filter(has_text="刚刚提交的圆形")
        expect(row).to_contain_text("succeeded")


def test_the_overview_shows_an_alert_and_updates_it(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/")
    alert = page.get_by_role("main").get_by_text(re.compile("No worker serves rinna"))
    with without_reload(page):
        before = alert.inner_text()
        farm.submit("又一个没人画的圆形", model="rinna")
        expect(alert).not_to_have_text(before)


def test_without_streams_a_page_polls(page: Page, farm: DashboardFarm) -> None:
    page.route("**/dashboard/live/**", lambda route: route.fulfill(status=204))
    page.goto("/dashboard/jobs")
    with without_reload(page):
        farm.submit("没有事件流时提交的圆形")
        expect(page.get_by_role("row").filter(has_text="没有事件流时提交的圆形")).to_be_visible()


def test_a_hidden_page_closes_its_stream_and_catches_up_later(page: Page, farm: DashboardFarm) -> None:
    with page.expect_request(is_stream):
        page.goto("/dashboard/jobs")
    opened: list[Request] = []
    page.on("request", lambda request: opened.append(request) if is_stream(request) else None)
    row = page.get_by_role("row").filter(has_text="没人看时提交的圆形")
    with without_reload(page):
        with page.expect_event("requestfailed", is_stream):
            page.evaluate(HIDE, True)
        farm.until_ended(farm.submit("没人看时提交的圆形"))
        expect(row).to_have_count(0)
        assert not opened
        page.evaluate(HIDE, False)
        expect(row).to_be_visible()
        assert len(opened) == 1


def test_the_progress_of_a_job_is_updated(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs['running']}")
    progress = page.get_by_role("progressbar").first
    with without_reload(page):
        expect(progress).to_be_visible()
        expect(progress).not_to_have_attribute("value", str(progress.get_attribute("value")))
