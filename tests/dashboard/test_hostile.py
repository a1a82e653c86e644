"""Hostile input stays text: in prompts, names, messages and URLs, in pages and in streams."""

from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard import checks
from tests.dashboard.corpus import HOSTILE
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")


def test_a_prompt_is_shown_unchanged(page: Page, farm: DashboardFarm) -> None:
    for attempt, typed in HOSTILE.items():
        page.goto(f"/dashboard/jobs/{farm.jobs[attempt]}")
        assert " ".join(typed.split()) in " ".join(page.get_by_role("main").inner_text().split()), attempt
        assert checks.injected_elements(page) == []
        assert checks.overflow(page) == []


def test_input_in_a_stream_stays_text(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/jobs")
    for typed in (HOSTILE["image"], HOSTILE["htmx"]):
        job_id = farm.submit(typed, model="rinna")
        expect(page.locator(f"#job-{job_id}")).to_contain_text(typed)
        assert checks.injected_elements(page) == []


def test_an_error_message_stays_text(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs['failed with a hostile message']}")
    expect(page.get_by_role("main")).to_contain_text(HOSTILE["image"])
    assert checks.injected_elements(page) == []
    assert checks.overflow(page) == []


@pytest.mark.parametrize("path", ["jobs", "images"])
def test_a_search_is_shown_unchanged(page: Page, path: str) -> None:
    for typed in (attempt[:200] for attempt in HOSTILE.values()):
        page.goto(f"/dashboard/{path}?q={quote(typed)}")
        expect(page.get_by_role("searchbox")).to_have_value(typed.replace("\n", ""))
        assert checks.injected_elements(page) == []


def test_a_lone_surrogate_is_replaced(page: Page) -> None:
    page.goto("/dashboard/new")
    page.get_by_label("Prompt", exact=True).evaluate("e => { e.value = '半个字\\ud83d'; }")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("region", name="Result")).to_contain_text("半个字\ufffd")
