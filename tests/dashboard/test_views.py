"""Every view, in both languages, on a desktop and on a phone, light and dark; with a screenshot of each.

The screenshots go to `screenshots/`, or to where HUAFANG_TEST_VIEWSHOTS says.
"""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.dashboard import checks
from tests.dashboard.browser import DESKTOP, PHONE
from tests.dashboard.conftest import Sessions, Visiting
from tests.dashboard.farm import DashboardFarm
from tests.dashboard.views import VIEWS

pytestmark = pytest.mark.needs("chromium", "hanzi")

FOLDER = Path(os.environ.get("HUAFANG_TEST_VIEWSHOTS") or Path(__file__).parents[2] / "screenshots")


@pytest.mark.parametrize("language", ["en", "zh-CN"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_passes_all_checks(
    view: str, language: str, visiting: Visiting, sessions: Sessions, farm: DashboardFarm
) -> None:
    """Axe is slow: it checks the desktop in English and the phone in Chinese, light and dark. Dark and light pages have
    the same layout and texts.
    """
    axe_size = DESKTOP if language == "en" else PHONE
    with visiting(session=sessions["admin"], language=language) as page:
        page.goto(farm.address(VIEWS[view]))
        expect(page.locator("html")).to_have_attribute("lang", language)
        found = checks.untranslated(page, farm.names)
        for size, scheme in ((DESKTOP, "light"), (PHONE, "light"), (axe_size, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            problems = [*checks.broken_images(page), *checks.overflow(page), *checks.injected_elements(page)]
            if size is axe_size:
                problems += checks.axe_violations(page)
            found += [f"{size['width']} px, {scheme}: {one}" for one in problems]
            page.screenshot(path=FOLDER / f"{view}-{language}-{size['width']}-{scheme}.png", full_page=True)
    assert not found, "\n".join(found)
