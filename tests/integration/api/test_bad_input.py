"""What the API is sent that it cannot carry out: each a problem that names the field, and nothing is stored."""

import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import Engine, text

from common.config import Settings
from common.db import transaction
from tests.support.serving import PROMPT, Api, readiness, serving
from tests.support.stories import Story

TOO_LONG = "红" * 60  # mini-zh reads 48 tokens

# What is sent beside (or in place of) a good prompt, and the field that the answer names.
RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "null for a prompt": ({"prompt": None}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "only spaces": ({"prompt": " \t　\n"}, "prompt"),
    "a NUL in the prompt": ({"prompt": "红\0色"}, "prompt"),
    "a NUL in the negative prompt": ({"negative_prompt": "\0"}, "negative_prompt"),
    "a lone surrogate": ({"prompt": "红\ud800"}, "prompt"),
    "a lone surrogate in the negative prompt": ({"negative_prompt": "\udfff"}, "negative_prompt"),
    "a prompt that the tokenizer cannot hold": ({"prompt": TOO_LONG}, "prompt"),
    "such a negative prompt": ({"negative_prompt": TOO_LONG}, "negative_prompt"),
    "a prompt of a megabyte, almost": ({"prompt": "红" * 160_000}, "prompt"),
    "a number for a prompt": ({"prompt": 5}, "prompt"),
    "no steps": ({"steps": 0}, "steps"),
    "a thousand steps": ({"steps": 1000}, "steps"),
    "steps beyond all integers": ({"steps": 10**30}, "steps"),
    "half a step": ({"steps": 1.5}, "steps"),
    "steps as a float": ({"steps": 20.0}, "steps"),
    "steps as text": ({"steps": "20"}, "steps"),
    "steps as a truth": ({"steps": True}, "steps"),
    "NaN steps": ({"steps": math.nan}, "steps"),
    "NaN guidance": ({"guidance": math.nan}, "guidance"),
    "infinite guidance": ({"guidance": math.inf}, "guidance"),
    "negative infinite guidance": ({"guidance": -math.inf}, "guidance"),
    "negative guidance": ({"guidance": -0.5}, "guidance"),
    "too much guidance": ({"guidance": 1000}, "guidance"),
    "guidance as a truth": ({"guidance": True}, "guidance"),
    "guidance beyond all floats": ({"guidance": 10**400}, "guidance"),
    "a width not divisible by 8": ({"width": 130}, "width"),
    "a height not divisible by 8": ({"height": 127}, "height"),
    "too narrow": ({"width": 8}, "width"),
    "negative height": ({"height": -128}, "height"),
    "a size over the model's limit": ({"width": 512, "height": 256}, "width"),
    "no images": ({"count": 0}, "count"),
    "less than none": ({"count": -1}, "count"),
    "too many images": ({"count": 65}, "count"),
    "a billion images": ({"count": 10**9}, "count"),
    "an unknown field": ({"stepz": 3}, "stepz"),
    "an unknown model": ({"model": "sd-9"}, "model"),
    "a model with a NUL": ({"model": "\0"}, "model"),
    "an unknown scheduler": ({"scheduler": "dpm#"}, "scheduler"),
    "an unknown format": ({"format": "gif"}, "format"),
    "an unknown mode": ({"mode": "video"}, "mode"),
    "an unknown tier": ({"tier": "urgent"}, "tier"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a seed of 65 bits": ({"seed": 2**64}, "seed"),
    "a seed that is no whole number": ({"seed": 1.5}, "seed"),
    "one seed of 65 bits among others": ({"seeds": [1, 2**64]}, "seeds.1"),
    "no seeds": ({"seeds": []}, "seeds"),
    "too many seeds": ({"seeds": list(range(65))}, "seeds"),
    "seeds beside a seed": ({"seeds": [1], "seed": 1}, "seeds"),
    "seeds that are not as many as images": ({"seeds": [1, 2], "count": 3}, "count"),
}

BODIES: dict[str, tuple[bytes, int, str]] = {
    "no body": (b"", 422, "body"),
    "not JSON": (b"prompt=x", 400, "body"),
    "half of it": (b'{"prompt": "x"', 400, "body"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', 400, "body"),
    "no prompt": (b"{}", 422, "prompt"),
    "a list": (b"[]", 422, "body"),
    "a text": (b'"x"', 422, "body"),
    "null": (b"null", 422, "body"),
    "nested without end": (b'{"prompt": ' + b"[" * 400_000, 400, "body"),
    "nested without end, and well formed": (b"[" * 400_000 + b"]" * 400_000, 400, "body"),
    "a number of many digits": (b'{"prompt": "x", "seed": ' + b"1" * 10_000 + b"}", 400, "body"),
    "a lone surrogate for a field": (b'{"prompt": "x", "\\ud800": 1}', 422, "body"),
    "over 1 MB": (b'{"prompt": "' + b"x" * 1_000_000 + b'"}', 413, "body"),
}

HEADERS: dict[str, tuple[dict[str, str], int, str]] = {
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
    "text": ({"Content-Type": "text/plain; charset=utf-8"}, 415, "Content-Type"),
    "a type that is none": ({"Content-Type": "json"}, 415, "Content-Type"),
    "no type": ({"Content-Type": ""}, 415, "Content-Type"),
    "an empty key": ({"Idempotency-Key": ""}, 422, "Idempotency-Key"),
    "a key that is too long": ({"Idempotency-Key": "k" * 256}, 422, "Idempotency-Key"),
    "a key that is not ASCII": ({"Idempotency-Key": "k\xff"}, 422, "Idempotency-Key"),
    "to wait no time": ({"Prefer": "wait=0"}, 422, "Prefer"),
    "to wait too long": ({"Prefer": "wait=61"}, 422, "Prefer"),
    "to wait for ever": ({"Prefer": "wait=inf"}, 422, "Prefer"),
}

QUERIES = {
    "limit=0": "limit",
    "limit=201": "limit",
    "limit=x": "limit",
    "cursor=x": "cursor",
    "cursor=%00": "cursor",
    "cursor=AAAA": "cursor",
    "cursor=AAAAAAAAAAAAAAAAAAAAAAA": "cursor",
    "cursor=%C3%A9AAAAAAAAAAAAAAAAAAAAA": "cursor",
    "cursor=": "cursor",
    "state=sleeping": "state",
    "tier=urgent": "tier",
    "model=%00": "model",
    "q=%00": "q",
    "created_after=yesterday": "created_after",
    "created_after=2026-01-01T00:00:00": "created_after",
    "created_before=99999-01-01T00:00:00Z": "created_before",
}


Refusal = tuple[int, str]  # the status, and a field that is named


def refusal(answer: httpx.Response, field: str) -> Refusal:
    """How a request was refused; the field, if the answer names it."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text[:500]
    problem = answer.json()
    assert list(problem) == ["type", "title", "status", "detail", "code", "errors", "request_id"]
    assert (problem["status"], problem["request_id"]) == (answer.status_code, answer.headers["X-Request-Id"])
    assert len(answer.content) < 2000, "it repeats what it was sent"
    named = [error["field"] for error in problem["errors"]]
    return answer.status_code, field if field in named else f"{named} instead of {field}"


@pytest.fixture
def nothing_stored(story: Story, settings: Settings) -> Iterator[None]:
    yield
    counts = {table: story.count(table) for table in ("jobs", "images", "lanes", "idempotency_keys")}
    assert set(counts.values()) == {0}, counts
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert redis.llen("render.mini-zh") == 0


def post(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value.encode("latin-1") for name, value in headers.items()}
    return client.post("/v1/jobs", content=body, headers={"Content-Type": b"application/json"} | given)


@pytest.mark.usefixtures("nothing_stored")
def test_recipes_that_no_worker_can_render_are_refused(client: httpx.Client) -> None:
    found = {name: refusal(post(client, json.dumps(PROMPT | bad).encode()), f) for name, (bad, f) in RECIPES.items()}
    assert found == {name: (422, field) for name, (_, field) in RECIPES.items()}


@pytest.mark.usefixtures("nothing_stored")
def test_a_dry_run_refuses_the_same(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs?dry_run=true", json=PROMPT | {"prompt": TOO_LONG})
    assert refusal(answer, "prompt") == (422, "prompt")
    assert answer.json()["code"] == "prompt_too_long"


@pytest.mark.usefixtures("nothing_stored")
def test_every_field_that_is_wrong_is_named_at_once(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={"prompt": " ", "steps": 0, "width": 127, "scheduler": "x"})
    assert {error["field"] for error in answer.json()["errors"]} == {"prompt", "steps", "width", "scheduler"}


@pytest.mark.usefixtures("nothing_stored")
def test_a_prompt_that_is_too_long_is_counted(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={"prompt": TOO_LONG, "negative_prompt": TOO_LONG})
    assert answer.json()["code"] == "prompt_too_long"
    assert {e["field"]: e["message"] for e in answer.json()["errors"]} == dict.fromkeys(
        ("prompt", "negative_prompt"), "has 62 tokens; mini-zh reads at most 48"
    )


@pytest.mark.usefixtures("nothing_stored")
def test_bodies_that_are_no_recipe(client: httpx.Client) -> None:
    found = {name: refusal(post(client, body), field) for name, (body, _, field) in BODIES.items()}
    assert found == {name: (status, field) for name, (_, status, field) in BODIES.items()}


@pytest.mark.usefixtures("nothing_stored")
def test_a_body_without_a_declared_length_is_limited_too(client: httpx.Client) -> None:
    chunks = (b'{"prompt": "', *(b"x" * 10_000 for _ in range(150)), b'"}')
    answer = client.post("/v1/jobs", content=iter(chunks), headers={"Content-Type": "application/json"})
    assert refusal(answer, "body") == (413, "body")


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["withheld", "expecting leave"])
@pytest.mark.parametrize(("path", "media_type"), [("/v1/jobs", "application/json"), ("/v1/uploads", "text/plain")])
def test_a_body_that_is_declared_too_long_is_refused_before_it_is_sent(
    client: httpx.Client, api: Api, path: str, media_type: str, expect: str
) -> None:
    key, url = client.headers["Authorization"], httpx.URL(api.url)
    headers = f"Host: {url.host}\r\nAuthorization: {key}\r\nContent-Type: {media_type}\r\n{expect}"
    head = f"POST {path} HTTP/1.1\r\n{headers}Content-Length: {api.settings.upload_limit + 1}\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        connection.sendall(head.encode())
        with connection.makefile("rb") as answer:
            assert answer.readline().split()[1] == b"413"


@pytest.mark.usefixtures("nothing_stored")
def test_headers_that_make_no_sense(client: httpx.Client) -> None:
    body = json.dumps(PROMPT).encode()
    found = {name: refusal(post(client, body, **headers), field) for name, (headers, _, field) in HEADERS.items()}
    assert found == {name: (status, field) for name, (_, status, field) in HEADERS.items()}


def test_queries_that_make_no_sense(client: httpx.Client) -> None:
    found = {query: refusal(client.get(f"/v1/jobs?{query}"), field) for query, field in QUERIES.items()}
    assert found == {query: (422, field) for query, field in QUERIES.items()}


def test_keys_that_make_no_sense(client: httpx.Client, story: Story) -> None:
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "no name": ({"scopes": ["viewer"]}, "name"),
        "an empty name": ({"name": "", "scopes": ["viewer"]}, "name"),
        "a NUL": ({"name": "\0", "scopes": ["viewer"]}, "name"),
        "a lone surrogate": ({"name": "\ud800", "scopes": ["viewer"]}, "name"),
        "no scopes": ({"name": "k", "scopes": []}, "scopes"),
        "an unknown scope": ({"name": "k", "scopes": ["root"]}, "scopes.0"),
        "an unknown field": ({"name": "k", "scopes": ["viewer"], "tenant": "x"}, "tenant"),
    }
    before = story.count("api_keys")
    headers = {"Content-Type": "application/json"}
    found = {
        name: refusal(client.post("/v1/keys", content=json.dumps(body), headers=headers), field)
        for name, (body, field) in bad.items()
    }
    assert found == {name: (422, field) for name, (_, field) in bad.items()}
    assert story.count("api_keys") == before


def test_unknown_ids_and_paths(client: httpx.Client) -> None:
    assert refusal(client.get("/v1/jobs/x"), "job_id") == (422, "job_id")
    assert refusal(client.get("/v1/images/%00/content"), "image_id") == (422, "image_id")
    nothing = client.get("/v1/pictures")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "not_found")
    wrong = client.put("/v1/jobs", json=PROMPT)
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["Allow"]


def test_control_tokens_are_text(client: httpx.Client, story: Story) -> None:
    job = client.post("/v1/jobs", json={"prompt": "[SEP] 红色的圆形 [MASK]"}).json()
    assert story.job(job["id"]).recipe["prompt"] == "[SEP] 红色的圆形 [MASK]"


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: httpx.Client) -> None:
    kept = client.get("/healthz", headers={"X-Request-Id": "trace-1:2/3"})
    assert kept.headers["X-Request-Id"] == "trace-1:2/3"
    for bad in ("", "a b", "x" * 129, "a\tb", "\xff"):
        given = client.get("/healthz", headers={"X-Request-Id": bad.encode("latin-1")}).headers["X-Request-Id"]
        assert (given != bad, len(given)) == (True, 36)


# The services of the farm are away.


def test_without_the_database_the_answer_is_503_and_a_time_to_try_again(
    settings: Settings, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://x@127.0.0.1:1/x")})
    with serving(away, database) as api, api.client() as client:
        for answer in (client.post("/v1/jobs", json=PROMPT), client.get("/v1/jobs"), client.get("/v1/models")):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["detail"].count(".") == 1
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").text.splitlines()[2] == "huafang_database_up 0.0"
    lines = [record for record in caplog.records if "request_unavailable" in record.getMessage()]
    assert len(lines) == 3
    assert not any(record.exc_info for record in lines)


def test_the_api_works_again_when_the_database_does(client: httpx.Client, api: Api, settings: Settings) -> None:
    name = str(api.database.url.database)
    client.post("/v1/jobs", json=PROMPT)
    with psycopg.connect(settings.database_url.get_secret_value().replace(name, "postgres"), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        assert client.post("/v1/jobs", json=PROMPT).status_code == 503
        assert client.get("/readyz").status_code == 503
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    assert client.post("/v1/jobs", json=PROMPT).status_code == 201
    readiness(client, 200, "ready")


def test_without_redis_a_job_is_accepted_all_the_same(
    settings: Settings, database: Engine, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    with serving(away, database) as api, api.client() as client:
        job = client.post("/v1/jobs", json=PROMPT)
        assert job.status_code == 201
        story.started()
        assert client.get(f"/v1/jobs/{job.json()['id']}").json()["progress"] is None
        assert client.post(f"/v1/jobs/{job.json()['id']}/cancel").json()["state"] == "cancelled"
        assert client.get("/readyz").json()["checks"]["redis"] == "Redis is unavailable."
    assert sum("redis_away" in record.getMessage() for record in caplog.records) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_an_unexpected_exception_is_one_sentence_and_one_log_line(
    client: httpx.Client, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction(api.database) as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["detail"].endswith(f"searching the log for {answer.headers['X-Request-Id']}.")
    assert "gone" not in answer.text
    assert "SELECT" not in answer.text
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.exc_info is not None for record in told] == [True]
    assert answer.headers["X-Request-Id"] in told[0].getMessage()
