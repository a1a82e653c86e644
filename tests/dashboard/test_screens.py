"""Every screen, in both languages, on a desk and on a phone, light and dark; and a picture of each.

The pictures go to `screenshots/`, or to where HUAFANG_TEST_SCREENSHOTS says.
"""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.dashboard import checks
from tests.dashboard.browser import DESK, PHONE
from tests.dashboard.conftest import Sessions, Visiting
from tests.dashboard.farm import DashboardFarm
from tests.dashboard.screens import SCREENS

pytestmark = pytest.mark.needs("chromium", "hanzi")

FOLDER = Path(os.environ.get("HUAFANG_TEST_SCREENSHOTS") or Path(__file__).parents[2] / "screenshots")


@pytest.mark.parametrize("language", ["en", "zh-CN"])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_is_well_made(
    screen: str, language: str, visiting: Visiting, sessions: Sessions, farm: DashboardFarm
) -> None:
    """Axe takes its time: it looks at the desk in English and at the phone in Chinese, light and dark. What is dark
    has the same places and words as what is light.
    """
    with_axe = DESK if language == "en" else PHONE
    with visiting(session=sessions["admin"], language=language) as page:
        page.goto(farm.address(SCREENS[screen]))
        expect(page.locator("html")).to_have_attribute("lang", language)
        found = checks.strangers(page, farm.names)
        for size, scheme in ((DESK, "light"), (PHONE, "light"), (with_axe, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            wrong = [*checks.blanks(page), *checks.overflow(page), *checks.intruders(page)]
            if size is with_axe:
                wrong += checks.barriers(page)
            found += [f"{size['width']} px, {scheme}: {one}" for one in wrong]
            page.screenshot(path=FOLDER / f"{screen}-{language}-{size['width']}-{scheme}.png", full_page=True)
    assert not found, "\n".join(found)
