"""Signing in with a browser: the key, the session, the language, and forms of other sites."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import Sessions, Visiting, submit_key
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")

ELSEWHERE = "elsewhere.example"


def is_signed_in(page: Page) -> bool:
    page.goto("/dashboard/")
    return page.get_by_role("button", name="Sign out").is_visible()


def test_signing_in_leads_to_the_requested_page_and_signing_out_back(visiting: Visiting, farm: DashboardFarm) -> None:
    with visiting() as page:
        page.goto("/dashboard/?hours=24")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        expect(page.get_by_role("navigation")).to_have_count(0)
        page.get_by_label("API key").fill(farm.secrets["viewer"])
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(f"{farm.url}/dashboard/?hours=24")
        expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.go_back()
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [(None, "unknown, was revoked or has expired"), ("jobs:read", "none of the scopes viewer, admin and operator")],
    ids=["unknown", "of another scope"],
)
def test_a_key_without_access_is_refused(
    visiting: Visiting, farm: DashboardFarm, scope: str | None, sentence: str
) -> None:
    with visiting(refusals=[401, 403]) as page:
        submit_key(page, farm.secrets[scope] if scope else "huaf_nonsense")
        expect(page.get_by_role("alert")).to_contain_text(sentence)
        expect(page.get_by_label("API key")).to_have_value("")
        assert "huaf_" not in page.url
        assert not is_signed_in(page)


def test_no_script_can_read_the_session(page: Page) -> None:
    page.goto("/dashboard/")
    assert page.evaluate("document.cookie") == ""
    (session,) = [cookie for cookie in page.context.cookies() if "session" in cookie["name"]]
    assert (session["httpOnly"], session["sameSite"], session["path"]) == (True, "Strict", "/dashboard")


def test_the_language_is_the_browsers_until_one_is_chosen(visiting: Visiting) -> None:
    with visiting(language="zh-TW") as page:
        page.goto("/dashboard/sign-in")
        expect(page.get_by_role("heading", level=1)).to_have_text("登录")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("登录")


@pytest.mark.parametrize("path", ["sign-out", "language", "sign-in"])
def test_a_form_of_another_site_does_nothing(
    visiting: Visiting, sessions: Sessions, farm: DashboardFarm, path: str
) -> None:
    """The browser sends it, without the session, and says where it comes from."""
    form = f"""
        <form method="post" action="{farm.url}/dashboard/{path}"><input name="language" value="zh-CN">
        <input name="key" value="{farm.secrets["admin"]}"><button>A kitten</button></form>
    """
    with visiting(session=sessions["viewer"], refusals=[401, 403], hosts=[ELSEWHERE]) as page:
        page.route(f"http://{ELSEWHERE}/**", lambda route: route.fulfill(body=form, content_type="text/html"))
        before = page.context.cookies()
        page.goto(f"http://{ELSEWHERE}/")
        with page.expect_response(re.compile(f"/dashboard/{path}$")) as answer:
            page.get_by_role("button").click()
        assert answer.value.status in (401, 403)
        assert page.context.cookies() == before
        assert is_signed_in(page)
