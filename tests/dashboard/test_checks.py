"""The checks themselves, on pages with deliberate errors."""

import pytest
from playwright.sync_api import Browser

from tests.dashboard import checks
from tests.dashboard.browser import PHONE, visit
from tests.dashboard.farm import DashboardFarm

pytestmark = pytest.mark.needs("chromium", "hanzi")

SQUARE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
WIDE = '<p style="width: 40rem">wide</p>'


def found_on(browser: Browser, body: str, language: str = "en") -> dict[str, list[str]]:
    page = browser.new_page(viewport=PHONE)
    page.set_content(f'<!doctype html><html lang="{language}"><title>画坊</title><body><main>{body}</main></html>')
    found = {
        "overflow": checks.overflow(page),
        "axe_violations": checks.axe_violations(page),
        "untranslated": checks.untranslated(page, ["红色的圆形", "mini-zh"]),
        "injected_elements": checks.injected_elements(page),
        "broken_images": checks.broken_images(page),
    }
    page.close()
    return {name: sentences for name, sentences in found.items() if sentences}


@pytest.mark.parametrize(
    ("check", "body"),
    [
        ("overflow", f"<h1>Hello</h1>{WIDE}"),
        ("overflow", "<h1>Hello</h1><div style='width: 5rem'><b style='display: block; width: 9rem'>spills</b></div>"),
        ("axe_violations", "<h1 style='color: #999'>Hello</h1>"),
        ("axe_violations", "<h1>Hello</h1><input>"),
        ("untranslated", "<h1>Hello</h1><p>红色的圆</p><p>任务</p>"),
        ("untranslated", "<h1>Hello</h1><button aria-label='关闭'>x</button>"),
        ("injected_elements", "<h1>Hello</h1><b data-xss>it</b>"),
        ("injected_elements", "<h1>Hello</h1><script>window.__xss = 'it'</script>"),
        ("broken_images", "<h1>Hello</h1><img alt='an image' src='data:image/png;base64,AAAA'>"),
        ("broken_images", f"<h1>Hello</h1><img alt='an image' src='{SQUARE}' style='width: 9px; height: 5px'>"),
    ],
)
def test_each_check_finds_its_errors(browser: Browser, check: str, body: str) -> None:
    assert found_on(browser, body).keys() == {check}


def test_a_correct_page_passes_all_checks(browser: Browser) -> None:
    body = f"""
        <h1>Hello</h1><div style="overflow-x: auto" tabindex="0" role="region" aria-label="wide">{WIDE}</div>
        <p>红色的圆形… mini-zh</p><p lang="zh">任务</p><code>任务</code><p hidden>任务</p>
    """
    assert found_on(browser, body) == {}
    assert found_on(browser, "<h1>任务 1a2b3c4d</h1><p>12 kB: manifest.json</p><p lang='en'>Hello</p>", "zh-CN") == {}
    assert list(found_on(browser, "<h1>任务</h1><p>Hello</p>", "zh-CN")) == ["untranslated"]


@pytest.mark.parametrize(
    ("path", "script", "error"),
    [
        ("/openapi.json", "console.error('a complaint')", "console: a complaint"),
        ("/openapi.json", "setTimeout(() => { throw new Error('a slip') })", "uncaught: a slip"),
        ("/openapi.json", "fetch('/nothing').then(answer => answer.text())", "404 from"),
        ("/openapi.json", "fetch('http://elsewhere.example/').catch(() => {})", "request to another host"),
        ("/dashboard/sign-in", "document.body.setAttribute('style', 'color: red')", "Content Security Policy"),
    ],
)
def test_a_visit_fails_on_every_error(
    browser: Browser, farm: DashboardFarm, path: str, script: str, error: str
) -> None:
    with pytest.raises(AssertionError, match=error), visit(browser, farm.url, "http://127.0.0.1:1") as page:
        page.goto(path)
        page.evaluate(script)
        page.evaluate("new Promise(resolve => setTimeout(resolve))")
