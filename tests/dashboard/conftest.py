"""One farm and one browser for all tests of the dashboard, and sessions of signed-in visitors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial

import pytest
from playwright.sync_api import Browser, Page, StorageState

from tests.conftest import OwnSettings
from tests.dashboard.browser import chromium, visit
from tests.dashboard.farm import DashboardFarm, dashboard_farm

Visiting = Callable[..., AbstractContextManager[Page]]
Sessions = Mapping[str, StorageState]  # by the scope of the key


@pytest.fixture(scope="package")
def farm(own_settings: OwnSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardFarm]:
    home = tmp_path_factory.mktemp("dashboard")
    with own_settings(home) as settings, dashboard_farm(settings) as farm:
        yield farm


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visiting(browser: Browser, farm: DashboardFarm) -> Visiting:
    """`with visiting(language="zh-CN") as page`: without a session unless one is given."""
    return partial(visit, browser, farm.url, farm.api.settings.s3_public_url)


@pytest.fixture(scope="package")
def sessions(browser: Browser, farm: DashboardFarm) -> Sessions:
    """The cookies of a browser after the sign-in."""
    return {scope: sign_in(browser, farm, scope) for scope in ("admin", "viewer")}


def sign_in(browser: Browser, farm: DashboardFarm, scope: str) -> StorageState:
    with visit(browser, farm.url, farm.api.settings.s3_public_url) as page:
        submit_key(page, farm.secrets[scope])
        page.wait_for_url("**/dashboard/")
        return page.context.storage_state()


def submit_key(page: Page, secret: str) -> None:
    page.goto("/dashboard/sign-in")
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture
def page(visiting: Visiting, sessions: Sessions) -> Iterator[Page]:
    """The page of an admin, in English."""
    with visiting(session=sessions["admin"]) as page:
        yield page


@pytest.fixture
def viewers_page(visiting: Visiting, sessions: Sessions) -> Iterator[Page]:
    """The page of a viewer."""
    with visiting(session=sessions["viewer"]) as page:
        yield page
