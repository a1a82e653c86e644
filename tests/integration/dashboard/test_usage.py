"""The page of usage: the own tenant's figures, and those of all for an operator only."""

from collections.abc import Iterator
from contextlib import closing
from uuid import UUID

import pytest
from sqlalchemy import text

from common.db import transaction
from common.enums import Scope
from common.queue import jobs
from tests.integration.dashboard.test_farm import HOSTILE, Visitor, row_of
from tests.support.serving import Api
from tests.support.stories import Story

pytestmark = pytest.mark.timeout(60)

NOTHING = "Nothing was stored in these days."


@pytest.fixture
def viewer(api: Api) -> Iterator[Visitor]:
    with closing(Visitor(api, Scope.VIEWER)) as visitor:
        yield visitor


def render(story: Story, count: int, tenant: str = "somebody", key_id: UUID | None = None) -> None:
    with transaction(story.database) as connection:
        recipe = story.recipe(count=count, width=64, height=64)
        jobs.submit(connection, story.tenant(tenant), recipe, key_id=key_id)
    story.publish(story.started(capacity=count))


def test_the_figures_are_those_of_what_was_stored(story: Story, viewer: Visitor) -> None:
    assert NOTHING in viewer.page("/usage")
    render(story, 5, key_id=viewer.key.id)
    render(story, 2)
    render(story, 3, "another")
    page = viewer.page("/usage")
    assert row_of(page, "usage-model-mini-zh") == ["mini-zh", "7", "0.0 s", "0.0", "7 B"]
    assert row_of(page, f"usage-key-{viewer.key.id}")[:2] == ["a key of the tests", "5"]
    assert row_of(page, "usage-key-None")[:2] == ["not known", "2"]
    assert 'd="M29.1 10v-7h0.8v7z"' in page, "the last of thirty days"
    assert page.index(f"usage-key-{viewer.key.id}") < page.index("usage-key-None"), "the most first"
    assert "用量" in viewer.page("/usage", **{"Accept-Language": "zh-CN"})


def test_days_are_chosen(story: Story, viewer: Visitor) -> None:
    render(story, 1)
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE usage_entries SET day = day - 10"))
    assert NOTHING in viewer.page("/usage?days=7")
    assert 'd="M19.1 4v-1h0.8v1z"' in viewer.page("/usage?days=30")
    assert viewer.browser.get("/dashboard/usage?days=367").status_code == 422


def test_only_an_operator_sees_all_tenants(api: Api, story: Story, viewer: Visitor) -> None:
    render(story, 2)
    render(story, 3, HOSTILE)
    with closing(Visitor(api, Scope.VIEWER, Scope.OPERATOR, tenant="farm")) as operator:
        assert NOTHING in operator.page("/usage")
        assert "all_tenants=true" in operator.page("/usage")
        page = operator.page("/usage?all_tenants=true")
        assert row_of(page, f"usage-tenant-{story.tenant()}")[:2] == ["somebody", "2"]
        assert row_of(page, f"usage-tenant-{story.tenant(HOSTILE)}")[1] == "3"
        assert HOSTILE not in page
    with closing(Visitor(api, Scope.ADMIN)) as admin:
        for visitor in (viewer, admin):
            assert "all_tenants" not in visitor.page("/usage")
            for path in ("/usage?all_tenants=true", "/live/usage?all_tenants=true"):
                assert visitor.browser.get(f"/dashboard{path}").status_code == 403
