"""A second tenant: made, used, suspended and resumed, by HTTP alone and by the command line alone; keys that expire."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis

from common.broker import render_queue
from common.config import Settings
from common.enums import Tier
from tests.support.command_line import CommandLine, Result
from tests.support.serving import EVERYTHING, PROMPT, Api
from tests.support.stories import Story

SHOP = {"weight": 2, "limits": {"waiting_images": 1000}, "tiers": ["standard"], "keep_pictures_days": 30}


def holder(api: Api, secret: str) -> httpx.Client:
    return api.stranger(headers={"Authorization": f"Bearer {secret}"})


def test_by_http_alone(api: Api, operator: httpx.Client, story: Story, settings: Settings) -> None:
    made = operator.post("/v1/tenants", json={"name": "shop", "key": "the shop's admin", **SHOP})
    shop = made.json()
    assert (made.status_code, made.headers["Location"]) == (201, f"{api.url}/v1/tenants/{shop['id']}")
    path = f"/v1/tenants/{shop['id']}"
    with holder(api, shop["key"]["secret"]) as client:
        job, held = (client.post("/v1/jobs", json=PROMPT | {"count": count}).json()["id"] for count in (3, 1))
        in_work = story.started(capacity=3)
        assert {str(image.job_id) for image in in_work.images} == {job}

        suspended = operator.post(f"{path}/suspend").json()
        assert (suspended["open_images"], suspended["keys"], suspended["suspended_at"] is None) == (4, 1, False)
        refused = client.get("/v1/jobs")
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant_suspended")
        assert story.claim(name="any") is None
        story.publish(in_work)
        waits = operator.get(f"/v1/jobs/{held}?all_tenants=true").json()
        assert (waits["state"], waits["waiting_for"]["code"], waits["tenant"]) == ("queued", "tenant_suspended", "shop")
        assert operator.get(f"/v1/jobs/{job}?all_tenants=true").json()["state"] == "succeeded"

        with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
            redis.delete(render_queue("mini-zh"))
            assert operator.post(f"{path}/resume").json()["suspended_at"] is None
            assert redis.llen(render_queue("mini-zh")) == 1
        assert client.get(f"/v1/jobs/{held}").json()["waiting_for"]["code"] == "no_worker"
        assert story.claim().images[0].job_id == UUID(held)


def test_what_a_suspended_tenant_has_waiting_is_ahead_of_nobody(
    client: httpx.Client, operator: httpx.Client, story: Story
) -> None:
    story.submit("shop", count=5)
    story.started(capacity=2)
    late = story.submit(count=1)

    def seen() -> tuple[int, int, int]:
        queue, job = operator.get("/v1/queue").json(), client.get(f"/v1/jobs/{late}").json()
        return queue["waiting"], queue["running"], job["position"]

    assert seen() == (4, 2, 3)
    path = f"/v1/tenants/{story.tenant('shop')}"
    operator.post(f"{path}/suspend").raise_for_status()
    assert seen() == (1, 2, 0)
    operator.post(f"{path}/resume").raise_for_status()
    assert seen() == (4, 2, 3)


def test_a_tenant_is_changed_in_part(operator: httpx.Client) -> None:
    shop = operator.post("/v1/tenants", json={"name": "shop", **SHOP}).json()
    path = f"/v1/tenants/{shop['id']}"
    assert (shop["key"], shop["keep_rows_days"]) == (None, None)
    assert {name: shop[name] for name in SHOP} == SHOP
    changed = operator.patch(
        path, json={"limits": {"images_a_day": 5}, "keep_rows_days": 7, "keep_pictures_days": None}
    )
    limits = {"waiting_images": 1000, "images_a_day": 5}
    expected = shop | {"limits": limits, "keep_rows_days": 7, "keep_pictures_days": None}
    del expected["key"]
    assert changed.json() == expected
    fewer = operator.patch(path, json={"limits": {"waiting_images": None}, "tiers": None, "name": "corner shop"}).json()
    assert fewer == expected | {"limits": {"images_a_day": 5}, "tiers": None, "name": "corner shop"}
    assert operator.patch(path, json={}).json() == operator.get(path).json() == fewer
    assert [one["name"] for one in operator.get("/v1/tenants").json()["items"]] == ["corner shop", "somebody"]
    assert operator.get("/v1/tenants?name=shop").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "somebody"}, 409, "conflict"),
        ({"name": ""}, 422, "invalid"),
        ({"name": " shop"}, 422, "invalid"),
        ({"name": "a\nb"}, 422, "invalid"),
        ({"name": "shop", "weight": 0}, 422, "invalid"),
        ({"name": "shop", "tiers": []}, 422, "invalid"),
        ({"name": "shop", "limits": {"waiting_images": -1}}, 422, "invalid"),
        ({"name": "shop", "limits": {"a\x00": 1}}, 422, "invalid"),
        ({"name": "shop", "keep_rows_days": 0}, 422, "invalid"),
        ({"name": "shop", "colour": "red"}, 422, "invalid"),
    ],
)
def test_what_no_tenant_can_have_is_refused(
    operator: httpx.Client, story: Story, body: dict[str, Any], status: int, code: str
) -> None:
    answer = operator.post("/v1/tenants", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    own = operator.get("/v1/tenants").json()["items"]
    assert [one["name"] for one in own] == ["somebody"]
    assert story.count("audit") == 0


def test_a_name_that_another_has_and_ones_own_tenant(operator: httpx.Client) -> None:
    (own,) = operator.get("/v1/tenants").json()["items"]
    shop = operator.post("/v1/tenants", json={"name": "shop"}).json()
    taken = operator.patch(f"/v1/tenants/{shop['id']}", json={"name": "somebody"})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    assert operator.post(f"/v1/tenants/{own['id']}/suspend").status_code == 409
    assert operator.get("/v1/jobs").status_code == 200


def test_each_change_of_a_tenant_is_recorded_once(operator: httpx.Client, story: Story) -> None:
    shop = operator.post("/v1/tenants", json={"name": "shop", "key": "admin"}).json()
    path = f"/v1/tenants/{shop['id']}"
    operator.patch(path, json={"weight": 3})
    operator.patch(path, json={})
    for action in ("suspend", "suspend", "resume", "resume"):
        operator.post(f"{path}/{action}").raise_for_status()
    records = story.rows("SELECT action, subject, detail, acted_on_id::text AS whose FROM audit ORDER BY id")
    assert [(row.action, row.subject, row.detail) for row in records] == [
        ("tenant.create", shop["id"], {"name": "shop"}),
        ("key.create", shop["key"]["id"], {"name": "admin", "scopes": ["admin"]}),
        ("tenant.change", shop["id"], {"weight": 3}),
        ("tenant.suspend", shop["id"], {}),
        ("tenant.resume", shop["id"], {}),
    ]
    assert {row.whose for row in records} == {shop["id"]}


# Keys


def test_an_admin_makes_no_operator(api: Api, client: httpx.Client, operator: httpx.Client) -> None:
    wanted = {"name": "more", "scopes": ["admin", "operator"]}
    refused = client.post("/v1/keys", json=wanted)
    assert (refused.status_code, refused.json()["code"]) == (403, "operator_needed")
    assert operator.post("/v1/keys", json=wanted).status_code == 201


def test_a_key_expires(api: Api, client: httpx.Client) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    key = client.post(
        "/v1/keys", json={"name": "short", "scopes": ["jobs:read"], "expires_at": soon.isoformat()}
    ).json()
    assert datetime.fromisoformat(key["expires_at"]) == soon
    with holder(api, key["secret"]) as short:
        assert short.get("/v1/jobs").status_code == 200
        while (answer := short.get("/v1/jobs")).status_code == 200:
            assert datetime.now(UTC) < soon + timedelta(seconds=30)
    assert datetime.now(UTC) >= soon
    assert answer.status_code == 401
    assert answer.json()["detail"].startswith("This API key expired at ")
    past = client.post("/v1/keys", json={"name": "late", "scopes": ["viewer"], "expires_at": "2020-01-01T00:00:00Z"})
    assert past.json()["detail"] == "expires_at: must be in the future."


# What an operator does to the jobs of others


def test_an_operator_finds_and_cancels_the_job_of_another_tenant(
    api: Api, client: httpx.Client, operator: httpx.Client, story: Story
) -> None:
    mine, theirs = story.submit(), story.submit("another", tier=Tier.BULK)
    assert [one["id"] for one in operator.get("/v1/jobs").json()["items"]] == [str(mine)]
    everyone = operator.get("/v1/jobs?all_tenants=true").json()["items"]
    assert [(one["id"], one["tenant"]) for one in everyone] == [(str(theirs), "another"), (str(mine), "somebody")]
    for query, found in (
        ("state=queued", [theirs, mine]),
        ("tier=bulk", [theirs]),
        ("state=failed", []),
        ("q=红色", [theirs, mine]),
    ):
        page = operator.get(f"/v1/jobs?all_tenants=true&{query}").json()["items"]
        assert [one["id"] for one in page] == list(map(str, found)), query
    standard = operator.get("/v1/jobs?all_tenants=true&limit=1&state=queued&tier=standard").json()
    assert [one["id"] for one in standard["items"]] == [str(mine)]
    story.cancel(mine)
    cancelled = operator.get("/v1/jobs?all_tenants=true&limit=1&state=cancelled").json()
    assert ([one["id"] for one in cancelled["items"]], cancelled["next_cursor"]) == ([str(mine)], None)
    first = operator.get("/v1/jobs?all_tenants=true&limit=1").json()
    second = operator.get("/v1/jobs?all_tenants=true&limit=1", params={"cursor": first["next_cursor"]}).json()
    assert [page["items"][0]["id"] for page in (first, second)] == [str(theirs), str(mine)]

    assert operator.post(f"/v1/jobs/{theirs}/cancel").status_code == 404
    assert operator.post(f"/v1/jobs/{theirs}/cancel?all_tenants=true").json()["state"] == "cancelled"
    (record,) = story.rows("SELECT tenant_id, acted_on_id, subject FROM audit")
    assert record == (story.tenant(), story.tenant("another"), str(theirs))


# The audit


def test_the_audit_names_the_address_and_whose_it_was(api: Api, operator: httpx.Client, story: Story) -> None:
    theirs = story.submit("another")
    with api.client("another") as other:
        other.post("/v1/keys", json={"name": "=1+1", "scopes": ["viewer"]}, headers={"X-Forwarded-For": "203.0.113.7"})
        (own,) = other.get("/v1/audit").json()["items"]
        assert other.get("/v1/audit?all_tenants=true").json()["code"] == "operator_needed"
    assert (own["action"], own["address"], own["tenant"], own["acted_on"]) == (
        "key.create", "203.0.113.7", "another", "another",
    )  # fmt: skip
    operator.post(f"/v1/jobs/{theirs}/cancel?all_tenants=true").raise_for_status()
    assert [one["action"] for one in operator.get("/v1/audit").json()["items"]] == ["job.cancel"]
    cancel, key = operator.get("/v1/audit?all_tenants=true").json()["items"]
    assert (cancel["tenant"], cancel["acted_on"], cancel["address"]) == ("somebody", "another", "127.0.0.1")
    assert key == own

    page = operator.get("/v1/audit?all_tenants=true&format=csv&limit=1")
    assert page.headers["Content-Type"] == "text/csv; charset=utf-8"
    rest = operator.get(page.links["next"]["url"])
    assert (rest.text.splitlines()[0], len(rest.text.splitlines()), rest.links) == (page.text.splitlines()[0], 2, {})
    assert '"{""name"": ""=1+1"", ""scopes"": [""viewer""]}"' in rest.text


@pytest.mark.parametrize("hostile", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_cell_of_the_csv_is_a_formula(api: Api, operator: httpx.Client, hostile: str) -> None:
    operator.post("/v1/tenants", json={"name": hostile, "key": "admin"}).raise_for_status()
    text = operator.get("/v1/audit?format=csv").text
    assert f",'{hostile}," in text
    assert f",{hostile}," not in text


# The command line


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    run = CommandLine(capsys)
    with api.client(scopes=EVERYTHING) as client:
        key = client.headers["Authorization"].removeprefix("Bearer ")
    return lambda *arguments, key=key: run(*arguments, "--format", "json", "--url", api.url, "--key", key)


def test_by_the_command_line_alone(call: Callable[..., Result], story: Story) -> None:
    options = ("--weight", "2", "--limit", "waiting_images=1000", "--tier", "standard", "--keep-pictures", "30")
    shop = call("tenants", "create", "shop", *options).json
    assert {name: shop[name] for name in SHOP} == SHOP
    secret = shop["secret"]
    assert call("tenants", "create", "shop").code == 5

    key = call("keys", "create", "--tenant", "shop", "--name", "web", "--scope", "jobs:read", "--expires", "30d").json
    in_days = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < in_days <= timedelta(days=30)
    assert [one["name"] for one in call("keys", "ls", key=secret).json] == ["admin", "web"]
    story.submit("shop")
    (job,) = call("jobs", "ls", key=key["secret"]).json
    assert call("jobs", "ls").json == []
    assert call("jobs", "ls", "--all-tenants").json[0]["tenant"] == "shop"
    assert call("jobs", "show", job["id"], "--all-tenants").json["tenant"] == "shop"

    assert call("tenants", "suspend", "shop").code == 0
    refused = call("jobs", "ls", key=key["secret"])
    assert (refused.code, "Your tenant is suspended" in refused.err) == (3, True)
    assert call("tenants", "show", "shop").json["suspended_at"]
    assert call("tenants", "resume", shop["id"]).code == 0
    assert call("jobs", "cancel", job["id"], key=secret).json[0]["state"] == "cancelled"
    changed = call(
        "tenants",
        "set",
        "shop",
        "--name",
        "corner",
        "--tier",
        "all",
        "--limit",
        "waiting_images=",
        "--keep-pictures",
        "0",
    ).json
    assert (changed["name"], changed["tiers"], changed["limits"], changed["keep_pictures_days"]) == (
        "corner",
        None,
        {},
        None,
    )
    assert [one["name"] for one in call("tenants", "ls").json] == ["corner", "somebody"]

    assert [one["action"] for one in call("audit", key=secret).json] == ["job.cancel"]
    lines = call("audit", "--all-tenants", "--csv").out.splitlines()
    assert lines[0].startswith("id,at,tenant,")
    assert len(lines) == 1 + len(call("audit", "--all-tenants").json)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("tenants", "suspend", "nobody"), 4),
        (("tenants", "create", "x", "--limit", "many"), 2),
        (("keys", "create", "--name", "x", "--expires", "soon"), 2),
        (("keys", "create", "--name", "x", "--expires", "2020-01-01"), 2),
    ],
)
def test_what_the_command_line_refuses(call: Callable[..., Result], arguments: tuple[str, ...], code: int) -> None:
    assert call(*arguments).code == code


def test_who_runs_no_farm_is_told(api: Api, client: httpx.Client, call: Callable[..., Result]) -> None:
    key = client.headers["Authorization"].removeprefix("Bearer ")
    refused = call("tenants", "ls", key=key)
    assert (refused.code, "the scope operator" in refused.err) == (3, True)
