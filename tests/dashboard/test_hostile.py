"""What people type to break a page stays text: in prompts, names, messages and addresses, at once and by the stream."""

from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard import checks
from tests.dashboard.corpus import HOSTILE
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")


def test_a_prompt_is_shown_as_it_was_typed(page: Page, farm: DashboardFarm) -> None:
    for attempt, typed in HOSTILE.items():
        page.goto(f"/dashboard/jobs/{farm.jobs[attempt]}")
        assert " ".join(typed.split()) in " ".join(page.get_by_role("main").inner_text().split()), attempt
        assert checks.intruders(page) == []
        assert checks.overflow(page) == []


def test_what_arrives_by_the_stream_stays_text_too(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/jobs")
    for typed in (HOSTILE["image"], HOSTILE["htmx"]):
        job_id = farm.submit(typed, model="rinna")
        expect(page.locator(f"#job-{job_id}")).to_contain_text(typed)
        assert checks.intruders(page) == []


def test_a_message_is_shown_as_it_was_sent(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs['failed with words']}")
    expect(page.get_by_role("main")).to_contain_text(HOSTILE["image"])
    assert checks.intruders(page) == []
    assert checks.overflow(page) == []


@pytest.mark.parametrize("path", ["jobs", "gallery"])
def test_a_search_is_repeated_as_it_was_typed(page: Page, path: str) -> None:
    for typed in (attempt[:200] for attempt in HOSTILE.values()):
        page.goto(f"/dashboard/{path}?q={quote(typed)}")
        expect(page.get_by_role("searchbox")).to_have_value(typed.replace("\n", ""))
        assert checks.intruders(page) == []


def test_half_a_character_is_no_obstacle(page: Page) -> None:
    page.goto("/dashboard/new")
    page.get_by_label("Prompt", exact=True).evaluate("e => { e.value = '半个字\\ud83d'; }")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("region", name="What becomes of it")).to_contain_text("半个字\ufffd")
