"""Usage over HTTP: exact at once and after it is folded, of the own tenant, or of all for an operator."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Engine, text

from api.services import bulk
from common.accounts import keys
from common.accounts.keys import Caller
from common.config import SHIPPED_CATALOG, Settings
from common.db import transaction
from common.enums import ImageState, Scope, Tier
from common.queue.search import JobFilter
from common.usage import ledger
from tests.support.batch_stories import BatchStory
from tests.support.serving import PROMPT, Api, serving
from tests.support.stories import Story

Json = dict[str, Any]


def today() -> str:
    return str(datetime.now(UTC).date())


def submit(client: httpx.Client, **fields: Any) -> str:
    return str(client.post("/v1/jobs", json=PROMPT | fields).raise_for_status().json()["id"])


def render(story: Story) -> None:
    while microbatch := story.claim(capacities={"mini-zh": 8, "taiyi": 8}):
        story.start(microbatch)
        story.publish(microbatch)


def usage(client: httpx.Client, **query: Any) -> Json:
    return dict(client.get("/v1/usage", params=query).raise_for_status().json())


def images(report: Json, *names: str) -> dict[Any, int]:
    """The images of each group, by these fields of it."""
    return {tuple(item[name] for name in names): item["images"] for item in report["items"]}


def age(story: Story, days: int) -> None:
    """What was used is so much older. By a detour: no day may become one that another row has yet."""
    with transaction(story.database) as connection:
        for table in ("usage_days", "usage_entries"):
            for less in (100_000, days - 100_000):
                connection.execute(text(f"UPDATE {table} SET day = day - :less"), {"less": less})


def fold(story: Story) -> None:
    with transaction(story.database) as connection:
        ledger.fold(connection)


@pytest.fixture
def priced(settings: Settings, database: Engine) -> Iterator[Api]:
    """A farm whose catalogue has a price of mini-zh."""
    shipped = SHIPPED_CATALOG.read_text("utf-8").replace("./mini-zh", str(SHIPPED_CATALOG.parent / "mini-zh"))
    price = 'price = { image = 0.1, megapixel = 1, currency = "CNY" }'
    settings.home.mkdir(parents=True, exist_ok=True)
    (settings.home / "catalog.toml").write_text(shipped.replace("[models.mini-zh]\n", f"[models.mini-zh]\n{price}\n"))
    with serving(settings.model_copy(update={"catalog": settings.home / "catalog.toml"}), database) as api:
        yield api


def test_what_is_stored_is_there_at_once_and_after_it_is_folded(client: httpx.Client, story: Story) -> None:
    assert usage(client)["items"] == []
    submit(client, count=3, width=64, height=64)
    submit(client, width=128, height=64, tier="interactive")
    render(story)
    for _ in range(2):
        report = usage(client)
        sums = {"images": 4, "gpu_seconds": 0.004, "megapixels": 0.02048, "bytes": 4, "cost": None}
        assert report["total"] == sums
        assert report["items"] == [{"day": today(), **sums}]
        assert images(usage(client, by="tier"), "tier") == {("interactive",): 1, ("standard",): 3}
        fold(story)
    assert story.count("usage_entries") == 0


def test_every_way_to_submit_names_its_key(api: Api, client: httpx.Client, story: Story, settings: Settings) -> None:
    """A job and its retry, a retry of all, a batch and the retry of what failed in it: by the one key or the other."""
    farm = BatchStory(story, settings)
    with api.client() as other:
        first, second = caller_of(api, client), caller_of(api, other)

        def key_of(table: str, row_id: object) -> UUID:
            return UUID(str(story.rows(f"SELECT key_id FROM {table} WHERE id = :id", id=row_id)[0].key_id))

        job = submit(client)
        assert key_of("jobs", job) == first.key_id
        other.post(f"/v1/jobs/{job}/cancel")
        job = other.post(f"/v1/jobs/{job}/retry").raise_for_status().json()["id"]
        assert key_of("jobs", job) == second.key_id
        other.post(f"/v1/jobs/{job}/cancel")
        assert bulk.retry(api.app.state.shared, first, JobFilter(), datetime.now(UTC) + timedelta(hours=1)).changed == 1
        newest = story.rows("SELECT id FROM jobs ORDER BY id DESC LIMIT 1")[0].id
        assert key_of("jobs", newest) == first.key_id
        client.post(f"/v1/jobs/{newest}/cancel")

        batch = other.post("/v1/batches", json={"prompts": ["红色的圆形"]}).raise_for_status().json()["id"]
        assert key_of("batches", batch) == second.key_id
        farm.expander.work(UUID(batch), 60)
        assert [row.key_id for row in farm.jobs_of(batch)] == [second.key_id]
        story.publish(story.started(), ImageState.FAILED, error_code="prompt_too_long", error_message="No.")
        farm.end()
        retry = client.post(f"/v1/batches/{batch}/retry-failed").raise_for_status().json()["id"]
        assert key_of("batches", retry) == first.key_id


def caller_of(api: Api, client: httpx.Client) -> Caller:
    """Whoever has the key of this client."""
    secret = client.headers["Authorization"].removeprefix("Bearer ")
    with transaction(api.database) as connection:
        return keys.authenticate(connection, secret, api.settings.key_pepper.get_secret_value())


def test_each_key_has_its_name(api: Api, client: httpx.Client, story: Story) -> None:
    with api.client() as other:
        submit(client, count=2)
        submit(other)
        render(story)
        by_key = images(usage(client, by="key"), "key_id", "key")
        expected = {caller_of(api, client).key_id: 2, caller_of(api, other).key_id: 1}
        assert by_key == {(str(key), "a key of the tests"): count for key, count in expected.items()}


def test_days_are_grouped_and_chosen(client: httpx.Client, story: Story) -> None:
    for _ in range(3):
        submit(client)
        render(story)
        fold(story)
        age(story, 20)
    submit(client)
    render(story)
    day = datetime.now(UTC).date()
    assert images(usage(client), "day") == {(str(day - timedelta(20)),): 1, (str(day),): 1}, "30 days"
    whole = usage(client, **{"from": day - timedelta(60), "to": day - timedelta(20)})
    assert images(whole, "day") == {(str(day - timedelta(days)),): 1 for days in (60, 40, 20)}
    assert whole["total"]["images"] == 3
    assert [item["day"] for item in whole["items"]] == sorted(item["day"] for item in whole["items"])


def test_unless_days_are_chosen_they_are_the_last_thirty_and_most_are_a_leap_year(
    client: httpx.Client, story: Story
) -> None:
    for days in (1, 29):
        submit(client)
        render(story)
        age(story, days)
    day = datetime.now(UTC).date()
    assert images(usage(client), "day") == {(str(day - timedelta(29)),): 1}
    assert usage(client, **{"from": day - timedelta(365)})["total"]["images"] == 2
    assert client.get("/v1/usage", params={"from": str(day - timedelta(366))}).status_code == 422


def test_a_tenant_sees_its_own_and_an_operator_all(api: Api, client: httpx.Client, story: Story) -> None:
    with (
        api.client("another", [Scope.VIEWER]) as viewer,
        api.client("another", [Scope.JOBS_READ, Scope.JOBS_WRITE]) as reader,
        api.client("another", [Scope.JOBS_WRITE]) as writer,
        api.client("farm", [Scope.VIEWER, Scope.OPERATOR]) as operator,
    ):
        submit(client, count=2)
        submit(reader)
        render(story)
        assert [usage(one)["total"]["images"] for one in (client, viewer, reader, operator)] == [2, 1, 1, 0]
        assert writer.get("/v1/usage").status_code == 403
        for query in ({"by": "tenant"}, {"by": "day,tenant"}, {"all_tenants": True}):
            for one in (client, viewer, reader):
                refused = one.get("/v1/usage", params=query)
                assert (refused.status_code, refused.json()["code"]) == (403, "operator_needed"), query
        assert images(usage(operator, by="tenant"), "tenant") == {("somebody",): 2, ("another",): 1}
        assert images(usage(operator, by="model", all_tenants=True), "model") == {("mini-zh",): 3}


def test_the_name_of_another_tenants_key_is_for_operators(api: Api, client: httpx.Client, story: Story) -> None:
    """An operator may act on the job of another tenant."""
    submit(client)
    with api.client("farm", [Scope.VIEWER, Scope.OPERATOR]) as operator, transaction(story.database) as connection:
        operators = "(SELECT id FROM api_keys WHERE 'operator' = ANY(scopes))"
        connection.execute(text(f"UPDATE jobs SET key_id = {operators}"))
        connection.commit()
        render(story)
        assert [item["key"] for item in usage(client, by="key")["items"]] == [None]
        assert [item["key"] for item in usage(operator, by="tenant,key")["items"]] == ["a key of the tests"]


def test_what_has_a_price_has_a_cost(priced: Api, story: Story) -> None:
    with priced.client() as client:
        client.post("/v1/models/taiyi/licence", json={"version": "2022-08-22"}).raise_for_status()
        submit(client, count=3, width=128, height=64)
        submit(client, model="taiyi")
        render(story)
        report = usage(client, by="model")
        assert report["currency"] == "CNY"
        cost = 0.1 * 3 + 3 * 128 * 64 / 1_000_000
        assert {item["model"]: item["cost"] for item in report["items"]} == {"mini-zh": round(cost, 6), "taiyi": None}
        assert usage(client, by="day")["items"][0]["cost"] == report["total"]["cost"] == round(cost, 6)
        assert [row["currency"] for row in table(client, by="model")] == ["CNY", ""]


def table(client: httpx.Client, **query: Any) -> list[dict[str, str]]:
    answer = client.get("/v1/usage", params=query | {"format": "csv"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_a_table_has_the_same_numbers(client: httpx.Client, story: Story) -> None:
    for tier in Tier:
        submit(client, tier=tier, count=2)
    render(story)
    report = usage(client, by="tier,model,day")
    assert report["by"] == ["day", "model", "tier"]
    rows = table(client, by="tier,model,day")
    assert list(rows[0]) == ["day", "model", "tier", "images", "gpu_seconds", "megapixels", "bytes", "cost", "currency"]
    assert [[row[name] for name in ("day", "model", "tier")] for row in rows] == [
        [item[name] for name in ("day", "model", "tier")] for item in report["items"]
    ]
    assert [int(row["images"]) for row in rows] == [2, 2, 2]
    assert [float(row["gpu_seconds"]) for row in rows] == [item["gpu_seconds"] for item in report["items"]]


def test_no_cell_of_a_table_is_a_formula(api: Api, client: httpx.Client, story: Story) -> None:
    submit(client)
    render(story)
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE api_keys SET name = '=HYPERLINK(1)'"))
    assert [row["key"] for row in table(client, by="key")] == ["'=HYPERLINK(1)"]
    assert usage(client, by="key")["items"][0]["key"] == "=HYPERLINK(1)"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"by": "worker"}, "by"),
        ({"by": ""}, "by"),
        ({"by": "day,"}, "by"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-02-30"}, "from"),
        ({"from": "2026-02-02", "to": "2026-02-01"}, "from"),
        ({"from": "2020-01-01", "to": "2026-02-01"}, "from"),
        ({"from": "0001-01-01"}, "from"),
        ({"to": "0"}, "to"),
        ({"format": "xml"}, "format"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(client: httpx.Client, query: dict[str, str], field: str) -> None:
    answer = client.get("/v1/usage", params=query)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("query", [{"to": date.min}, {"to": date.max}, {"from": date.max, "to": date.max}])
def test_days_at_the_ends_of_time_have_nothing(client: httpx.Client, query: Json) -> None:
    query = {**query, "from": query.get("from", query["to"])}
    assert usage(client, **query)["items"] == []
    assert usage(client, to=date.min)["items"] == []


def test_more_rows_than_an_answer_holds_are_refused(
    client: httpx.Client, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.queries import usage as queries

    for tier in Tier:
        submit(client, tier=tier)
    render(story)
    monkeypatch.setattr(queries, "MOST_ROWS", 2)
    assert client.get("/v1/usage?by=tier").status_code == 422
    assert images(usage(client, by="model"), "model") == {("mini-zh",): 3}
