"""Requests a minute, open streams, keys, stored bytes: each reached and recovered from, and what answers say of it."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.limits.quota import Quota
from api.limits.requests import Requests
from common.accounts import stored_bytes
from common.accounts.limits import Limits
from common.broker import Broker
from common.config import Settings
from common.errors import LimitReached
from common.storage import Storage
from tests.support.limits import allow_tiers, limit, reached
from tests.support.serving import Api
from tests.support.stories import Clock, Story
from tests.support.visiting import visiting
from worker.control.sweep import Sweep

JOB = {"prompt": "红色的圆形", "model": "mini-zh", "steps": 2}


def used(client: httpx.Client) -> dict[str, tuple[int | None, int | None]]:
    answer = client.get("/v1/limits")
    assert answer.status_code == 200, answer.text
    return {item["limit"]: (item["used"], item["allowed"]) for item in answer.json()["items"]}


def test_requests_are_counted_by_the_minute_and_each_answer_says_how_many_are_left(
    story: Story, client: httpx.Client
) -> None:
    limit(story, requests_a_minute=3, images_a_day=9)
    policy = '"images_a_day";q=9;w=86400;qu="images", "requests_a_minute";q=3;w=60'
    for answer, left in ((client.get("/v1/models"), 2), (client.get("/v1/jobs/x"), 1), (client.get("/v1/keys"), 0)):
        assert answer.headers["RateLimit-Policy"] == policy
        assert answer.headers["RateLimit"].startswith(f'"requests_a_minute";r={left};t=')
    refused = client.post("/v1/jobs", json=JOB)
    assert reached(refused) == ("requests_a_minute", 3, 3)
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"] == f'"requests_a_minute";r=0;t={refused.headers["Retry-After"]}'
    assert refused.headers["RateLimit-Policy"] == policy
    assert story.count("jobs") == 0
    assert client.get("/healthz").status_code == 200
    limit(story)
    free = client.get("/v1/models")
    assert free.status_code == 200
    assert not free.headers.keys() & {"ratelimit", "ratelimit-policy"}


def test_a_limit_that_a_submission_has_reached_is_in_the_fields(story: Story, client: httpx.Client) -> None:
    limit(story, waiting_images=1)
    refused = client.post("/v1/jobs", json=JOB | {"count": 2})
    assert refused.headers["RateLimit"] == '"waiting_images";r=1'
    assert client.post("/v1/jobs", json=JOB).headers["RateLimit-Policy"] == '"waiting_images";q=1;qu="images"'
    assert client.post("/v1/jobs", json=JOB).headers["RateLimit"] == '"waiting_images";r=0;t=10'


def test_the_next_minute_begins_with_the_first_request_after_it() -> None:
    clock, tenant = Clock(), uuid4()
    requests, quota = Requests(clock), Quota(Limits(requests_a_minute=2))
    for left in (1, 0):
        requests.count(tenant, quota)
        assert quota.remaining == {"requests_a_minute": (left, 60)}
    clock.now += 59.5
    with pytest.raises(LimitReached) as refused:
        requests.count(tenant, quota)
    assert refused.value.retry_after_s == 1
    requests.count(uuid4(), quota)  # another tenant has its own
    clock.now += 0.5
    requests.count(tenant, quota)
    assert quota.remaining == {"requests_a_minute": (1, 60)}


def test_streams_and_waits_are_open_until_they_end(story: Story, client: httpx.Client, api: Api) -> None:
    job = client.post("/v1/jobs", json=JOB).json()["id"]
    limit(story, open_streams=1)
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        chunks = stream.iter_raw()  # once it is forgotten, httpx closes the stream
        next(chunks)
        assert reached(client.get(f"/v1/jobs/{job}/events")) == ("open_streams", 1, 1)
        before = story.count("jobs")
        assert reached(client.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=5"})) == ("open_streams", 1, 1)
        assert story.count("jobs") == before
        assert client.post("/v1/jobs", json=JOB).status_code == 201
        assert used(client)["open_streams"] == (1, 1)
    until_closed = threading.Event()
    for _ in range(100):
        if used(client)["open_streams"] == (0, 1):
            break
        until_closed.wait(0.1)  # the server learns a moment later that the client is gone
    assert client.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=1"}).status_code == 201
    assert used(client)["open_streams"] == (0, 1)


def test_keys_are_limited_until_one_is_revoked(story: Story, client: httpx.Client) -> None:
    limit(story, keys=2)
    key = {"name": "a key", "scopes": ["jobs:read"]}
    made = client.post("/v1/keys", json=key)
    assert made.status_code == 201
    refused = client.post("/v1/keys", json=key)
    assert (reached(refused), refused.headers.get("Retry-After")) == (("keys", 2, 2), None)
    assert client.delete(f"/v1/keys/{made.json()['id']}").status_code == 204
    assert client.post("/v1/keys", json=key).status_code == 201


@pytest.fixture
def sweep(settings: Settings, story: Story) -> Sweep:
    storage = Storage(settings)
    storage.ensure_bucket()
    return Sweep(settings, story.database, Broker(settings), storage)


def test_stored_bytes_are_limited_as_of_the_last_sweep(
    story: Story, client: httpx.Client, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_bytes, "RESTS", 0)
    limit(story, stored_bytes=10)
    text = {"Content-Type": "text/plain"}
    kept = client.post("/v1/uploads", content="红色的圆形".encode(), headers=text).json()["id"]  # 15 bytes
    story.submit()
    story.publish(story.started())  # 1 byte
    assert used(client)["stored_bytes"] == (0, 10)
    sweep.once()
    assert used(client)["stored_bytes"] == (16, 10)
    batch = {"upload": kept, "defaults": {"model": "mini-zh"}}
    uploads = story.count("uploads")
    for refused in (
        client.post("/v1/jobs", json=JOB),
        client.post("/v1/uploads", content=b"x", headers=text),
        client.post("/v1/batches", json=batch),
        client.post("/v1/batches", json={"prompts": ["红色的圆形"]}),
    ):
        assert (reached(refused), refused.headers.get("Retry-After")) == (("stored_bytes", 16, 10), None)
    assert story.count("uploads") == uploads
    with story.database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM uploads")
    sweep.once()
    assert client.post("/v1/jobs", json=JOB).status_code == 201


def test_only_limited_tenants_are_counted_and_large_ones_less_often(story: Story, sweep: Sweep) -> None:
    story.submit(tenant="unlimited")
    limit(story, "large", stored_bytes=10)
    sweep.once()
    assert [row.bytes for row in story.rows("SELECT * FROM stored_bytes")] == [0]
    with story.database.begin() as connection:
        connection.exec_driver_sql("UPDATE stored_bytes SET seconds = 5, bytes = 7")
    sweep.once()
    assert [row.bytes for row in story.rows("SELECT * FROM stored_bytes")] == [7]


@pytest.fixture
def limited(settings: Settings, database: Any) -> Iterator[Api]:
    from tests.support.serving import serving

    with serving(settings.model_copy(update={"limit_waiting_images": 1}), database) as api:
        yield api


def test_the_settings_hold_for_whom_has_no_limits_of_its_own(story: Story, limited: Api) -> None:
    with limited.client() as client:
        assert reached(client.post("/v1/jobs", json=JOB | {"count": 2})) == ("waiting_images", 0, 1)
        limit(story, waiting_images=2)
        assert client.post("/v1/jobs", json=JOB | {"count": 2}).status_code == 201


def test_the_limits_say_what_is_used_and_when_that_ends(story: Story, client: httpx.Client) -> None:
    assert used(client)["waiting_images"] == (0, None)
    assert used(client)["images_a_day"] == (None, None)
    limit(story, images_a_day=5, waiting_interactive=4, requests_a_minute=100)
    client.post("/v1/jobs", json=JOB | {"count": 3, "tier": "interactive"})
    now = used(client)
    assert (now["images_a_day"], now["waiting_interactive"], now["waiting_images"]) == ((3, 5), (3, 4), (3, None))
    assert (now["keys"], now["requests_a_minute"]) == ((1, None), (2, 100))
    allow_tiers(story, "bulk", "standard")
    said = client.get("/v1/limits").json()
    assert said["tiers"] == ["standard", "bulk"]
    resets = {item["limit"]: item["resets_at"] for item in said["items"]}
    assert resets["images_a_day"].endswith("T00:00:00Z")
    assert {name for name, at in resets.items() if at} == {"images_a_day", "requests_a_minute"}


def test_the_dashboard_shows_how_full_each_limit_is_and_offers_only_what_is_allowed(story: Story, api: Api) -> None:
    with visiting(api) as visit:
        assert "Your limits" not in visit.page("/") + visit.page("/new")
        limit(story, waiting_images=3, stored_bytes=2_000_000)
        allow_tiers(story, "standard", "bulk")
        job = story.submit(count=3)
        for page in (visit.page("/"), visit.page("/new")):
            assert "Your limits" in page
            assert '<progress max="3" value="3"' in page
            assert "3 / 3" in page
            assert "0 B / 2.0 MB" in page
        assert all(words in visit.page("/", "zh") for words in ("您的限额", "未结束的图像", "已满"))
        assert 'value="interactive"' not in visit.page("/new")
        assert "Make it bulk" in visit.page(f"/jobs/{job}")
        assert "Make it interactive" not in visit.page(f"/jobs/{job}")
        refused = visit.act("/new", "zh", prompt="红色的圆形", model="mini-zh", tier="standard")
        assert refused.status_code == 422
        assert "限额" in refused.text
