"""What people type to break a page stays text: in prompts, names, messages and addresses, at once and by the stream."""

from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard import checks
from tests.dashboard.corpus import HOSTILE
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")


@pytest.mark.parametrize("attempt", HOSTILE)
def test_a_prompt_is_shown_as_it_was_typed(page: Page, farm: DashboardFarm, attempt: str) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs[attempt]}")
    said = page.get_by_role("main").evaluate(
        "e => e.innerText + [...e.querySelectorAll('textarea, input')].map(i => i.value)"
    )
    assert " ".join(HOSTILE[attempt].split()) in " ".join(said.split())
    assert checks.intruders(page) == []
    assert checks.overflow(page) == []


@pytest.mark.parametrize("path", ["jobs", "gallery"])
def test_a_search_is_repeated_as_it_was_typed(page: Page, path: str) -> None:
    for typed in (attempt[:200] for attempt in HOSTILE.values()):
        page.goto(f"/dashboard/{path}?q={quote(typed)}")
        expect(page.get_by_role("searchbox")).to_have_value(typed.replace("\n", ""))
        assert checks.intruders(page) == []
