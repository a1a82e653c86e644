"""The dashboard without a mouse; the focus is always visible."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.conftest import Visiting
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")

MAX_TABS = 80
IS_VISIBLE = """e => {
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  return style.outlineStyle !== "none" && box.width > 0 && box.right > 0 && box.bottom > 0;
}"""


def go_to(page: Page, goal: Locator, key: str = "Tab") -> None:
    """Press Tab until the goal has the focus. Every focus on the way must be visible."""
    for _ in range(MAX_TABS):
        page.keyboard.press(key)
        focus = page.locator(":focus")
        if focus.count():
            assert focus.evaluate(IS_VISIBLE), focus.evaluate("e => e.outerHTML")
        if goal.evaluate("e => e === document.activeElement"):
            return
    raise AssertionError(f"{MAX_TABS} times {key} do not reach {goal}")


def test_from_the_sign_in_to_the_images(visiting: Visiting, farm: DashboardFarm) -> None:
    with visiting() as page:
        page.goto("/dashboard/")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(farm.secrets["viewer"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Overview")

        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        go_to(page, page.get_by_role("link", name="Jobs", exact=True), "Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")

        go_to(page, page.get_by_role("table").get_by_role("link").first)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_contain_text("Job ")

        go_to(page, page.get_by_role("link", name="Images", exact=True))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Images")


def test_the_lightbox_shows_one_image_after_the_other(page: Page) -> None:
    page.goto("/dashboard/images")
    images = page.get_by_role("main").get_by_role("listitem").get_by_role("link")
    go_to(page, images.first)
    page.keyboard.press("Enter")
    lightbox = page.get_by_role("dialog")
    shown = lightbox.get_by_role("img")
    expect(lightbox).to_be_visible()
    first = shown.get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(shown).not_to_have_attribute("src", str(first))
    page.keyboard.press("ArrowLeft")
    expect(shown).to_have_attribute("src", str(first))
    page.keyboard.press("ArrowRight")
    go_to(page, lightbox.get_by_role("button", name="Close"))
    page.keyboard.press("Escape")
    expect(lightbox).to_be_hidden()
    expect(images.nth(1)).to_be_focused()


def test_images_of_the_same_prompt_and_seed_are_side_by_side(page: Page, farm: DashboardFarm) -> None:
    image = farm.job(farm.jobs["of 1 steps"])["images"][0]
    page.goto(f"/dashboard/images/{image['id']}")
    expect(page.get_by_role("listitem").get_by_role("img")).to_have_count(2)
    expect(page.get_by_role("list").filter(has=page.get_by_role("img"))).to_contain_text("steps")
