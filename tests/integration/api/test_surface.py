"""What holds for every route: HEAD, security headers, parts that are closed to strangers, dates at the ends of time."""

import httpx
import pytest
from redis import Redis
from sqlalchemy import Engine

from api.routes import health
from common.config import Settings
from common.db import new_id
from common.enums import Scope
from tests.support.raw_http import raw_connection
from tests.support.serving import PROMPT, Api, serving
from tests.support.stories import Story

SAFE = {"x-content-type-options": "nosniff", "x-frame-options": "DENY"}


def paths_to_read(client: httpx.Client, job: dict) -> list[str]:
    ids = {"job_id": job["id"], "image_id": job["images"][0]["id"]}
    ids |= {noun: new_id() for noun in ("batch_id", "dataset_id", "tenant_id")}
    paths = client.get("/openapi.json").json()["paths"]
    return [path.format(**ids) for path, operations in paths.items() if "get" in operations]


def test_head_works_where_get_does(api: Api, client: httpx.Client, story: Story) -> None:
    job = client.post("/v1/jobs", json=PROMPT).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")  # its event stream ends
    paths = [*paths_to_read(client, job), "/docs", "/openapi.json", "/docs/assets/favicon.png", "/dashboard/sign-in"]
    for path in [*paths, "/dashboard/", "/dashboard/static/farm.js", "/v1/nothing"]:
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers.get("content-type") == get.headers.get("content-type"), path
        if "content-length" in get.headers and not path.startswith(("/metrics", "/v1/nothing")):
            assert head.headers["content-length"] == get.headers["content-length"], path
    wrong = client.post("/v1/models")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "GET, HEAD")
    assert 'route="/v1/jobs/{job_id}",status="200"' in "".join(
        line for line in client.get("/metrics").text.splitlines() if 'method="HEAD"' in line
    )


def test_head_of_a_stream_ends(api: Api, client: httpx.Client) -> None:
    job = client.post("/v1/jobs", json=PROMPT).json()["id"]
    answer = client.head(f"/v1/jobs/{job}/events", timeout=20)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_every_answer_has_the_security_headers(api: Api, client: httpx.Client) -> None:
    paths = ("/healthz", "/v1/jobs", "/nothing", "/docs", "/docs/assets/favicon.png", "/dashboard/sign-in")
    for path in (*paths, "/dashboard/nothing", "/dashboard/static/farm.js", "/dashboard/static/nothing.js"):
        for one in (client, api.stranger()):
            headers = one.get(path).headers
            assert {name: headers.get(name) for name in SAFE} == SAFE, path
    with raw_connection(api.url) as raw:
        raw.send(b"nonsense\r\n\r\n")
        assert raw.response().headers["X-Frame-Options"] == "DENY"


PARTS = {"metrics": ["/metrics"], "docs": ["/docs", "/openapi.json"]}


@pytest.mark.parametrize("closed", PARTS)
def test_a_part_can_be_closed_to_strangers(settings: Settings, database: Engine, closed: str) -> None:
    public = ",".join({"metrics", "docs", "readiness"} - {closed})
    with (
        serving(settings.model_copy(update={"public": public}), database) as api,
        api.stranger() as stranger,
        api.client(scopes=[Scope.VIEWER]) as viewer,
        api.client(scopes=[Scope.JOBS_READ]) as reader,
    ):
        for path in PARTS[closed]:
            assert [one.get(path).status_code for one in (stranger, reader, viewer)] == [401, 403, 200], path
        for path in (path for part, paths in PARTS.items() for path in paths if part != closed):
            assert stranger.get(path).status_code == 200, path
        assert stranger.get("/readyz").json()["checks"]


def test_the_details_of_readiness_can_be_closed(
    settings: Settings, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CACHED_S", 0)
    shut = settings.model_copy(update={"public": "", "s3_endpoint_url": "http://127.0.0.1:1"})
    with serving(shut, database) as api, api.stranger() as stranger, api.client(scopes=[Scope.VIEWER]) as viewer:
        answer = stranger.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "checks": {}})
        assert viewer.get("/readyz").json()["checks"]["s3"] != "ok"
        assert stranger.get("/healthz").status_code == 200
        with database.begin() as connection:
            connection.exec_driver_sql("UPDATE schema_version SET oldest_code = 9999")
        answer, seen = stranger.get("/readyz"), viewer.get("/readyz").json()
        assert (answer.status_code, answer.json()["checks"], answer.json()["errors"]) == (503, {}, [])
        assert "9999" not in answer.text
        assert "9999" in seen["checks"]["migrations"]
        assert {error["field"] for error in seen["errors"]} == {"migrations", "s3"}


def test_an_unknown_part_is_an_error_at_the_start() -> None:
    with pytest.raises(ValueError, match="metricks: known are metrics, docs, readiness"):
        Settings(public="metricks")


def test_who_reads_redis_cannot_sign_in_with_what_is_there(api: Api, settings: Settings) -> None:
    with api.client() as client:
        link = client.post("/dashboard/links").json()["url"]
    ticket = link.rpartition("/")[2]
    with Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as redis:
        names = [name for name in redis.keys("*") if "ticket" in name]
        assert len(names) == 1
        assert not any(ticket in name or ticket in redis.get(name) for name in names)
        with api.stranger() as thief:
            assert thief.get(f"/dashboard/enter/{names[0].rpartition(':')[2]}").status_code == 401
    with api.stranger() as owner:
        assert owner.get(link).status_code == 303


@pytest.mark.parametrize(
    "query",
    [
        "created_after=0",
        "created_after=1969-12-31T00:00:00Z",
        "created_before=1969-12-31T00:00:00Z",
        "created_before=9999-12-31T23:59:59Z",
        "created_after=9999-12-31T23:59:59-12:00",
        "created_after=0001-01-01T00:00:00%2B12:00&created_before=9999-12-31T23:59:59-12:00",
        "created_after=-20000000000",
        "q=x&created_after=0&created_before=9999-12-31T23:59:59Z",
    ],
)
def test_dates_before_1970_and_in_9999(client: httpx.Client, query: str) -> None:
    job = client.post("/v1/jobs", json=PROMPT).json()["id"]
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 200, answer.text
    is_in = not query.startswith(("created_before=1969", "created_after=9999", "q=x"))
    assert [one["id"] for one in answer.json()["items"]] == ([job] if is_in else [])
