"""Jobs over HTTP, through a real uvicorn: submitted once, looked at, listed, cancelled, retried."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
from redis import Redis
from sqlalchemy import Engine, event, text

from common.broker import CANCELLED_CHANNEL, CHANGED_CHANNEL
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier
from common.estimates import farm
from common.queue import quarantines, workers
from tests.support.serving import PROMPT, Api, serving
from tests.support.stories import Story
from tests.support.workers import quarantine

JOB_KEYS = """
    id state tier batch_id parent_id recipe images progress position eta_seconds eta_seconds_p90 eta_unknown waiting_for
    warnings error created_at started_at finished_at timings worker row meta
"""
IMAGE_KEYS = "id index state attempts seed width height format bytes sha256 url error picture_deleted_at reused"
RECIPE_KEYS = """prompt negative_prompt model width height steps scheduler guidance seeds mode format source mask
strength lora style count"""


def submit(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=PROMPT | fields)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


def look(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").json()
    return found


def up(story: Story, **facts: Any) -> workers.Worker:
    """A worker that serves mini-zh, and has said so."""
    given: dict[str, Any] = {"id": story.worker_id, "name": "w1", "worker_class": {}, "models": ["mini-zh"]}
    worker = workers.Worker(**given | facts)
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    return worker


def test_a_submitted_job_can_be_read(client: httpx.Client, story: Story) -> None:
    answer = client.post("/v1/jobs", json=PROMPT | {"count": 2, "seed": 7, "tier": "interactive"})
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"].endswith(f"/v1/jobs/{job['id']}")
    assert client.get(answer.headers["Location"]).json() == job
    assert (job["state"], job["tier"], job["warnings"], job["position"]) == ("queued", "interactive", [], 0)
    assert [image["seed"] for image in job["images"]] == [7, 8]
    assert story.job(job["id"]).request_id == answer.headers["X-Request-Id"]


def test_a_job_has_the_keys_of_the_contract(client: httpx.Client) -> None:
    job = submit(client)
    assert list(job) == JOB_KEYS.split()
    assert list(job["images"][0]) == IMAGE_KEYS.split()
    assert list(job["recipe"]) == RECIPE_KEYS.split()
    assert list(job["timings"]) == ["wait_s", "render_s", "store_s"]


def test_the_largest_seeds_are_returned_unchanged(client: httpx.Client) -> None:
    job = submit(client, seeds=[2**64 - 1, 0])
    assert job["recipe"]["seeds"] == [image["seed"] for image in job["images"]] == [2**64 - 1, 0]


def test_a_prompt_that_the_model_cannot_read_gets_a_warning(client: httpx.Client) -> None:
    job = submit(client, prompt="女孩们打开了另一世界的大门")
    assert any("zh-v0" in line for line in job["warnings"])
    assert look(client, job)["warnings"] == job["warnings"]


def test_a_submission_sends_one_message_and_only_after_the_commit(api: Api, settings: Settings) -> None:
    sent = []
    wake = api.app.state.shared.broker.wake

    def witness(model: str, *, job_id: Any, tier: str) -> bool:
        with api.database.connect() as other:
            sent.append(other.execute(text("SELECT state FROM jobs WHERE id = :id"), {"id": job_id}).scalar())
        return bool(wake(model, job_id=job_id, tier=tier))

    api.app.state.shared.broker.wake = witness
    with api.client() as client:
        submit(client)
    assert sent == ["queued"]
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert redis.llen("render.mini-zh") == 1


def test_one_key_makes_one_job(api: Api, client: httpx.Client, story: Story) -> None:
    def repeat(_: int) -> httpx.Response:
        return client.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": "k 1~"})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(repeat, range(16)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == story.count("jobs") == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 15
    with api.client("another tenant") as other:
        assert (
            "Idempotency-Replayed"
            not in other.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": "k 1~"}).headers
        )


def test_another_body_under_a_key_is_an_error(client: httpx.Client, story: Story) -> None:
    key = {"Idempotency-Key": "k"}
    client.post("/v1/jobs", json=PROMPT, headers=key)
    answer = client.post("/v1/jobs", json=PROMPT | {"steps": 3}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    same = client.post(
        "/v1/jobs", content='{ "prompt":"\\u7ea2色的圆形"}', headers=key | {"Content-Type": "application/json"}
    )
    assert same.headers["Idempotency-Replayed"] == "true"
    assert story.count("jobs") == 1


def test_a_dry_run_resolves_and_stores_nothing(client: httpx.Client, story: Story) -> None:
    up(story, seconds_per_image={"mini-zh": 0.5})
    answer = client.post("/v1/jobs?dry_run=true", json=PROMPT | {"count": 4}, headers={"Idempotency-Key": "k"})
    said = answer.json()
    assert (answer.status_code, set(said)) == (200, {"recipe", "estimate", "warnings"})
    assert said["estimate"] == {"images": 4, "seconds": 2.0, "seconds_p90": 3.0, "unknown": None}
    assert said["recipe"]["scheduler"] == "ddim"
    assert story.count("jobs") == story.count("idempotency_keys") == 0


def test_a_finished_job_says_what_became_of_it(client: httpx.Client, story: Story) -> None:
    job = submit(client, count=2)
    up(story)
    microbatch = story.started()
    story.publish(microbatch)
    found = look(client, job)
    assert (found["state"], found["worker"], found["position"], found["waiting_for"]) == ("succeeded", "w1", None, None)
    assert found["timings"]["wait_s"] >= 0
    assert (found["timings"]["render_s"], found["timings"]["store_s"]) == (0.002, 0.002)
    for image in found["images"]:
        assert image["url"] == f"{client.base_url}/v1/images/{image['id']}/content"
        assert image["sha256"]


def test_a_failed_job_says_why_and_whether_a_retry_can_help(client: httpx.Client, story: Story) -> None:
    job = submit(client)
    story.publish(story.started(), ImageState.FAILED, error_code="prompt_too_long", error_message="It is too long.")
    found = look(client, job)
    assert found["error"] == {"code": "prompt_too_long", "message": "It is too long.", "retryable": False}
    assert found["images"][0]["error"] == {"code": "prompt_too_long", "message": "It is too long."}


def test_a_waiting_job_says_why_it_waits(client: httpx.Client, story: Story) -> None:
    job = submit(client)

    def why() -> tuple[str, str]:
        waiting_for = look(client, job)["waiting_for"]
        return waiting_for["code"], waiting_for["message"]

    assert why()[0] == "no_worker"
    up(story, models=[], refusals={"mini-zh": "its weights are damaged"})
    assert why() == ("model_refused", "w1 refuses it: its weights are damaged")
    up(story)
    assert why()[0] == "workers_busy"
    quarantine(story, "w1", "its calls fail")
    assert why() == (
        "workers_quarantined",
        "Every worker that serves mini-zh is quarantined or drains. w1 is quarantined: its calls fail",
    )
    with transaction(story.database) as connection:
        quarantines.lift(connection, "w1")
        workers.drain(connection, story.worker_id, "for the test")
    assert why()[0] == "draining"
    with transaction(story.database) as connection:
        workers.resume(connection, story.worker_id)
    story.publish(story.started(), ImageState.FAILED, error_code="out_of_memory", error_message="", retryable=True)
    assert why()[0] == "backing_off"
    story.skip_backoff()
    assert why()[0] == "workers_busy"
    story.started()
    assert look(client, job)["waiting_for"] is None


def test_position_counts_what_is_ahead_in_the_same_model(api: Api, client: httpx.Client, story: Story) -> None:
    up(story, seconds_per_image={"mini-zh": 2.0})
    story.submit(tenant="another", count=3)
    story.submit(tenant="another", count=6, tier=Tier.BULK)
    story.submit(count=4, steps=9)
    mine = submit(client, count=2)
    story.submit(count=5)
    story.submit(model="zh-v0", count=6, tier=Tier.INTERACTIVE)
    assert (look(client, mine)["position"], look(client, mine)["eta_seconds"]) == (7, 18.0)
    story.submit(count=10, tier=Tier.INTERACTIVE)
    story.submit(count=20, tier=Tier.BULK)
    assert look(client, mine)["position"] == 17
    story.claim(capacity=8)
    assert look(client, mine)["position"] == 9
    for _ in range(20):
        story.submit(count=64, tier=Tier.INTERACTIVE)
    far = look(client, mine)
    assert (far["position"], far["eta_seconds"], far["eta_unknown"]["code"]) == (1000, None, "too_far")


def test_a_running_job_says_how_far_it_is(api: Api, client: httpx.Client, story: Story) -> None:
    job = submit(client)
    story.started()
    assert look(client, job)["progress"] is None
    api.app.state.shared.broker.report_progress([job["id"]], 3, 20)
    found = look(client, job)
    assert (found["state"], found["progress"]) == ("running", {"step": 3, "steps": 20})
    assert client.get("/v1/jobs").json()["items"][0]["progress"] == {"step": 3, "steps": 20}


def test_a_job_that_has_not_changed_is_not_sent_again(client: httpx.Client, story: Story) -> None:
    job = submit(client)
    path = f"/v1/jobs/{job['id']}"
    etag = client.get(path).headers["ETag"]
    assert etag.startswith('W/"')
    again = client.get(path, headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    story.started()
    changed = client.get(path, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.headers["ETag"] == etag) == (200, False)


def test_pages_follow_each_other_without_gap_or_repetition(client: httpx.Client, story: Story) -> None:
    expected = [str(story.submit()) for _ in range(7)][::-1]
    found: list[str] = []
    url: str | None = "/v1/jobs?limit=3&state=queued"
    while url:
        answer = client.get(url)
        page = answer.json()
        found += [job["id"] for job in page["items"]]
        story.submit()  # what is submitted meanwhile stands before the first page
        url = answer.links["next"]["url"] if "next" in answer.links else None
        assert (url is None) == (page["next_cursor"] is None)
        assert url is None or f"cursor={page['next_cursor']}" in url
    assert found == expected


def test_jobs_are_found_by_their_fields(client: httpx.Client, story: Story) -> None:
    cat = story.submit(prompt="一只 Cat_100%")
    bulk = story.submit(tier=Tier.BULK, steps=3, at=datetime(2020, 1, 1, tzinfo=UTC))
    zh = story.submit(model="zh-v0")
    story.publish(story.started(capacities={"zh-v0": 1}))

    def found(**filters: str) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=filters).json()["items"]]

    assert found(state="succeeded") == found(model="zh-v0") == [str(zh)]
    assert found(tier="bulk") == found(created_before="2020-01-02T00:00:00+08:00") == [str(bulk)]
    assert found(created_after="2020-01-02T00:00:00Z", state="queued") == [str(cat)]
    assert found(q="cat_") == found(q="0%") == [str(cat)]
    assert found(q="c_t") == []


def test_a_page_of_many_jobs_takes_as_many_queries_as_one(
    api: Api, client: httpx.Client, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "MAX_AGE_S", 600)  # in which what estimates need is read once

    def queries(limit: int) -> int:
        seen: list[str] = []

        def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        event.listen(api.app.state.shared.engine, "before_cursor_execute", note)
        assert len(client.get("/v1/jobs", params={"limit": limit}).json()["items"]) == limit
        event.remove(api.app.state.shared.engine, "before_cursor_execute", note)
        return len(seen)

    for _ in range(30):
        story.submit(count=2)
    client.get("/v1/jobs")
    assert queries(1) == queries(30) == 3


def test_a_cancel_is_announced_to_workers_and_can_be_repeated(client: httpx.Client, settings: Settings) -> None:
    job = submit(client, count=2)
    with Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as redis, redis.pubsub() as news:
        news.subscribe(CANCELLED_CHANNEL, CHANGED_CHANNEL)
        answers = [client.post(f"/v1/jobs/{job['id']}/cancel") for _ in range(2)]
        heard: list[str] = []
        for message in iter(partial(news.get_message, timeout=60), None):
            heard += [message["channel"]] if message["data"] == job["id"] else []
            if len(heard) == 2:
                break
    assert heard == [CANCELLED_CHANNEL, CHANGED_CHANNEL]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["state"] for answer in answers] == ["cancelled"] * 2
    assert {image["state"] for image in answers[0].json()["images"]} == {"cancelled"}


def test_a_job_that_has_ended_is_not_cancelled(client: httpx.Client, story: Story) -> None:
    job = submit(client)
    story.publish(story.started())
    answer = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


def test_a_retry_is_a_new_job_that_names_its_parent(client: httpx.Client, settings: Settings) -> None:
    job = submit(client, seed=5)
    early = client.post(f"/v1/jobs/{job['id']}/retry")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    again = answer.json()
    assert (answer.status_code, again["parent_id"], again["state"]) == (201, job["id"], "queued")
    assert again["recipe"] == job["recipe"]
    assert answer.headers["Location"].endswith(again["id"])
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert redis.llen("render.mini-zh") == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/{job}"),
        ("POST", "/v1/jobs/{job}/cancel"),
        ("POST", "/v1/jobs/{job}/retry"),
        ("GET", "/v1/images/{image}"),
        ("GET", "/v1/images/{image}/content"),
    ],
)
def test_a_job_of_another_tenant_is_not_found(
    api: Api, client: httpx.Client, story: Story, method: str, path: str
) -> None:
    job = submit(client)
    story.publish(story.started())
    names = {"job": job["id"], "image": job["images"][0]["id"]}
    with api.client("another tenant") as other:
        answer = other.request(method, path.format(**names))
        nowhere = other.request(method, path.format(job=new_id(), image=new_id()))
        assert (answer.status_code, nowhere.status_code) == (404, 404)
        assert answer.json()["code"] == "not_found"
        assert other.get("/v1/jobs").json()["items"] == []
    assert client.request(method, path.format(**names), follow_redirects=False).status_code != 404
    assert story.count("jobs") == (2 if path.endswith("retry") else 1)


def test_a_key_may_do_what_its_scopes_say(api: Api) -> None:
    with api.client(scopes=[Scope.JOBS_READ]) as reader, api.client(scopes=[Scope.JOBS_WRITE]) as writer:
        refused = reader.post("/v1/jobs", json=PROMPT)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert "jobs:write" in refused.json()["detail"]
        job = submit(writer)
        assert writer.get(f"/v1/jobs/{job['id']}").status_code == 403
        assert look(reader, job)["id"] == job["id"]
    with api.stranger() as stranger:
        answer = stranger.post("/v1/jobs", json=PROMPT)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for key in ("huaf_nobody", "x", "\xff"):
            headers = {"Authorization": f"Bearer {key}".encode("latin-1")}
            assert stranger.get("/v1/jobs", headers=headers).status_code == 401


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "https"), ("192.0.2.1", "http")])
def test_only_a_proxy_that_is_trusted_says_where_clients_see_the_farm(
    settings: Settings, database: Engine, trusted: str, scheme: str
) -> None:
    with serving(settings.model_copy(update={"trusted_proxies": trusted}), database) as api, api.client() as client:
        headers = {"X-Forwarded-Proto": "https", "Host": "farm.example"}
        answer = client.post("/v1/jobs", json=PROMPT, headers=headers)
    assert answer.headers["Location"].startswith(f"{scheme}://farm.example/v1/jobs/")
