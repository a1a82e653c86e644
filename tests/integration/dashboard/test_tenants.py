"""The screens of who runs the farm: tenants, the audit of all of them, and what others are not shown."""

import re
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from common.broker import Broker
from common.config import Settings
from common.db import new_id
from common.enums import Scope
from common.storage import Storage
from tests.integration.dashboard.test_farm import ZH, Visitor, register_worker, row_of
from tests.support.serving import EVERYTHING, Api
from tests.support.stories import Story
from tests.support.workers import quarantine, until
from worker.control.sweep import Sweep

pytestmark = pytest.mark.timeout(120)

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def operator(api: Api) -> Iterator[Visitor]:
    with closing(Visitor(api, *EVERYTHING)) as visitor:
        yield visitor


@pytest.fixture
def admin(api: Api) -> Iterator[Visitor]:
    with closing(Visitor(api, Scope.ADMIN)) as visitor:
        yield visitor


def sign_in(api: Api, browser: httpx.Client, secret: str) -> httpx.Response:
    browser.post("/dashboard/sign-in", data={"key": secret}, headers={"Origin": api.url})
    return browser.get("/dashboard/jobs")


def test_a_second_tenant_by_the_dashboard_alone(api: Api, operator: Visitor, story: Story) -> None:
    made = operator.do(
        "/tenants", name=HOSTILE, weight="2", tiers=["standard"], limits="waiting_images=1000\n", keep_rows_days=""
    )
    found = re.search("huaf_[A-Za-z0-9_-]{43}", made.raise_for_status().text)
    assert found
    assert HOSTILE not in made.text
    page = operator.page("/tenants")
    assert found[0] not in page
    (tenant,) = set(re.findall(r'<tr id="tenant-([0-9a-f-]+)"', page)) - {str(story.tenant())}
    assert row_of(page, f"tenant-{tenant}")[:6] == [
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "active",
        "2.0",
        "standard",
        "1",
        "0",
    ]
    assert "租户" in operator.page("/tenants", **ZH)

    with api.stranger() as browser:
        assert sign_in(api, browser, found[0]).status_code == 200
        form = operator.page(f"/tenants/{tenant}")
        assert "waiting_images=1000" in form
        assert 'value="standard" checked' in form
        fields = {"weight": "0.5", "limits": "images_a_day = 7", "keep_pictures_days": "30"}
        assert operator.do(f"/tenants/{tenant}", name="shop", **fields).status_code == 200
        (row,) = story.rows("SELECT * FROM tenants WHERE name = 'shop'")
        assert (row.weight, row.tiers, row.limits, row.keep_pictures_days) == (0.5, None, {"images_a_day": 7}, 30)
        for wrong in ({"weight": "0"}, {"weight": "x"}, {"limits": "many"}, {"keep_rows_days": "-1"}):
            assert operator.do(f"/tenants/{tenant}", name="shop", **wrong).status_code == 422, wrong

        assert "its keys are refused" in operator.do(f"/tenants/{tenant}/suspend").raise_for_status().text
        answer = browser.get("/dashboard/jobs", headers=ZH)
        assert (answer.status_code, "您的租户已被暂停" in answer.text) == (403, True)
        with api.stranger() as another:
            assert sign_in(api, another, found[0]).is_redirect
        assert f"/tenants/{tenant}/resume" in operator.page(f"/tenants/{tenant}")
        assert operator.do(f"/tenants/{tenant}/resume").status_code == 200
        assert browser.get("/dashboard/jobs").status_code == 200
    assert operator.do(f"/tenants/{story.tenant()}/suspend").status_code == 409
    assert f"/tenants/{story.tenant()}/suspend" not in operator.page(f"/tenants/{story.tenant()}")


def test_a_tenant_is_erased_once_its_name_was_typed(operator: Visitor, story: Story, settings: Settings) -> None:
    shop = story.tenant("shop")
    story.submit("shop", count=3)
    path = f"/tenants/{shop}"
    assert f"{path}/erase" in operator.page(path)
    assert f"/tenants/{story.tenant()}/erase" not in operator.page(f"/tenants/{story.tenant()}")
    assert operator.do(f"{path}/erase", name="shop").status_code == 409
    operator.do(f"{path}/suspend").raise_for_status()
    for wrong in ({}, {"name": ""}, {"name": "Shop"}):
        answer = operator.do(f"{path}/erase", **wrong)
        assert (answer.status_code, "not the name of this tenant" in answer.text) == (422, True), wrong
    assert not story.rows("SELECT FROM tenants WHERE erased_at IS NOT NULL")
    assert "is being erased" in operator.do(f"{path}/erase", name="shop").raise_for_status().text

    page = operator.page(path)
    assert row_of(page, "left-images") == ["images", "3"]
    assert "/resume" not in page
    assert row_of(operator.page("/tenants"), f"tenant-{shop}")[1].startswith("being erased")
    sweep = Sweep(settings, story.database, Broker(settings), Storage(settings))

    def is_finished() -> bool:
        sweep.once()
        sweep.delete()
        return bool(story.rows("SELECT FROM tenants WHERE erasure_finished_at IS NOT NULL"))

    until(is_finished)
    page = operator.page(path)
    assert row_of(page, "left-images") == ["images", "0"]
    assert row_of(page, "kept-tenants")[1] == "1"
    assert "no row names: 0 of 0" in page
    assert "正在抹除" not in operator.page(path, **ZH)
    assert "已抹除" in operator.page(path, **ZH)
    assert "erased a tenant" in operator.page("/admin/audit")


def test_others_are_not_shown_what_concerns_the_farm(operator: Visitor, admin: Visitor, story: Story) -> None:
    register_worker(story)
    quarantine(story, "gpu-1", "its calls fail")
    pages = {"/": "was quarantined", "/workers": "/drain", "/admin": 'value="operator"', "/admin/audit": "all_tenants"}
    for path, shown in pages.items():
        assert shown in operator.page(path), path
        assert shown not in admin.page(path), path
        assert "/dashboard/tenants" in operator.page(path)
        assert "/dashboard/tenants" not in admin.page(path)


def test_a_stream_of_an_operator_is_shared_with_nobody_else(operator: Visitor, admin: Visitor, story: Story) -> None:
    register_worker(story)
    with operator.browser.stream("GET", "/dashboard/live/workers") as first:
        open_till_the_end = first.iter_lines()
        assert "/drain" in first_event(open_till_the_end)
        with admin.browser.stream("GET", "/dashboard/live/workers") as second:
            assert "/drain" not in first_event(second.iter_lines())


def first_event(lines: Iterator[str]) -> str:
    """What the stream of a page sends first: the page as it is."""
    text = ""
    while not (text.endswith("\n\n") and "data:" in text):
        text += f"{next(lines)}\n"
    return text


def test_the_jobs_of_all_tenants(api: Api, operator: Visitor, admin: Visitor, story: Story) -> None:
    mine, theirs = story.submit(), story.submit("another", count=2)
    story.publish(story.started())
    late = story.submit("another")
    assert str(theirs) not in operator.page("/jobs")
    page = operator.page("/jobs?all_tenants=true")
    assert row_of(page, f"job-{theirs}")[-2:] == ["another", ""]
    assert row_of(page, f"job-{late}")[-2:] == ["another", "Cancel"]
    assert row_of(page, f"job-{mine}")[-2] == "somebody"
    assert "/thumbnail" not in page
    assert re.findall(r'href="[^"]*/jobs/[^"]*"', page) == []
    assert str(mine) not in operator.page("/jobs?all_tenants=true&limit=2")
    assert "all_tenants=true&amp;cursor=" in operator.page("/jobs?all_tenants=true&limit=2")
    assert admin.browser.get("/dashboard/jobs?all_tenants=true").status_code == 403

    assert admin.do(f"/jobs/{late}/cancel?all_tenants=true").status_code == 403
    assert operator.do(f"/jobs/{late}/cancel").status_code == 404
    assert operator.do(f"/jobs/{late}/cancel?all_tenants=true").status_code == 200
    assert story.job(late).state == "cancelled"
    with closing(Visitor(api, Scope.OPERATOR)) as only_operator:
        last = story.submit("another")
        assert only_operator.do(f"/jobs/{last}/cancel").status_code == 403
        assert only_operator.do(f"/jobs/{last}/cancel?all_tenants=true").status_code == 200


def test_the_audit_of_all_tenants(api: Api, operator: Visitor, story: Story) -> None:
    with api.client("another") as other:
        key = other.post("/v1/keys", json={"name": "theirs", "scopes": ["viewer"]}).json()["id"]
    assert key not in operator.page("/admin/audit")
    page = operator.page("/admin/audit?all_tenants=true")
    (record,) = story.rows("SELECT id FROM audit WHERE action = 'key.create'")
    assert row_of(page, f"record-{record.id}")[1:5] == [
        "a key of the tests another",
        "API",
        "127.0.0.1",
        "created an API key",
    ]
    operator.do("/tenants", name="shop").raise_for_status()
    assert "of tenant shop" in operator.page("/admin/audit")
    assert operator.browser.get("/dashboard/admin/audit?all_tenants=true&limit=1").text.count("all_tenants=true") >= 2


def test_a_key_of_the_form_expires(admin: Visitor) -> None:
    fields = {"name": "short", "scopes": ["viewer"]}
    assert admin.do("/admin/keys", **fields, expires_at="2020-01-01").status_code == 422
    assert admin.do("/admin/keys", **fields, expires_at="soon").status_code == 422
    assert admin.do("/admin/keys", **fields, expires_at="2999-01-31").status_code == 200
    assert "2999-01-31T00:00:00Z" in admin.page("/admin")
    refused = admin.do("/admin/keys", name="more", scopes=["operator"])
    assert (refused.status_code, "the scope operator" in refused.text) == (403, True)


def test_no_page_of_a_tenant_that_is_not_there(operator: Visitor) -> None:
    assert operator.browser.get(f"/dashboard/tenants/{new_id()}").status_code == 404
