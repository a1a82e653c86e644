"""Who did what: each deed over HTTP has its note, and what was refused has none."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis

from api.queries.audit import find_audit_records
from api.services import bulk
from common import bootstrap
from common.accounts import keys
from common.accounts.keys import Caller
from common.broker import CANCELLED_CHANNEL
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier, Via
from common.queue import bulk as selection
from common.queue import workers
from common.queue.search import JobFilter, preview
from tests.support.serving import PROMPT, Api
from tests.support.stories import Story

NOTES = "SELECT * FROM audit ORDER BY id"


def noted(story: Story) -> list[tuple[str, str | None, dict[str, Any]]]:
    return [(row.action, row.subject, row.detail) for row in story.rows(NOTES)]


@pytest.fixture
def caller(api: Api, client: httpx.Client) -> Caller:
    """Whoever has the key of `client`, at the dashboard."""
    secret = client.headers["Authorization"].removeprefix("Bearer ")
    with transaction(api.database) as connection:
        found = keys.authenticate(connection, secret, api.settings.key_pepper.get_secret_value())
    return replace(found, via=Via.DASHBOARD, request_id="r1")


def submit(client: httpx.Client, **fields: Any) -> str:
    return str(client.post("/v1/jobs", json=PROMPT | fields).raise_for_status().json()["id"])


def test_a_change_to_a_job_is_recorded_once(client: httpx.Client, story: Story, caller: Caller) -> None:
    job = submit(client, tier="bulk")
    moved = client.post(f"/v1/jobs/{job}/tier", json={"tier": "interactive"}, headers={"X-Request-Id": "mine"})
    assert (moved.status_code, moved.json()["tier"], moved.json()["position"]) == (200, "interactive", 0)
    for _ in range(2):
        client.post(f"/v1/jobs/{job}/tier", json={"tier": "interactive"})
        client.post(f"/v1/jobs/{job}/cancel")
    again = client.post(f"/v1/jobs/{job}/retry").json()["id"]
    assert noted(story) == [
        ("job.tier", job, {"tier": "interactive"}),
        ("job.cancel", job, {}),
        ("job.retry", job, {"job": again}),
    ]
    first = story.rows(NOTES)[0]
    assert (first.tenant_id, first.key_id) == (caller.tenant_id, caller.key_id)
    assert (first.via, first.request_id) == ("api", "mine")


def test_a_refused_change_is_not_recorded(api: Api, client: httpx.Client, operator: httpx.Client, story: Story) -> None:
    job = submit(client)
    with api.client("another tenant") as other:
        assert other.post(f"/v1/jobs/{job}/tier", json={"tier": "bulk"}).status_code == 404
    with api.client(scopes=[Scope.JOBS_READ]) as reader:
        assert reader.post(f"/v1/jobs/{job}/tier", json={"tier": "bulk"}).status_code == 403
    story.publish(story.started())
    late = client.post(f"/v1/jobs/{job}/tier", json={"tier": "bulk"})
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    assert client.post(f"/v1/jobs/{job}/tier", json={"tier": "soon"}).status_code == 422
    assert client.post(f"/v1/workers/{new_id()}/drain").status_code == 403
    assert operator.post(f"/v1/workers/{new_id()}/drain").status_code == 404
    assert client.post(f"/v1/batches/{new_id()}/cancel").status_code == 404
    assert client.delete(f"/v1/keys/{new_id()}").status_code == 404
    assert noted(story) == []


def test_changes_to_batches_workers_keys_and_licences_are_recorded(
    api: Api, operator: httpx.Client, story: Story
) -> None:
    client = operator
    look = {"model": "mini-zh", "steps": 2}
    batch = client.post("/v1/batches", json={"prompts": ["猫"], "defaults": look, "name": "cats"}).json()["id"]
    client.post(f"/v1/batches/{batch}/pause")
    client.post(f"/v1/batches/{batch}/resume")
    dataset = client.post("/v1/datasets", json={"batch": batch}).json()["id"]
    client.post(f"/v1/batches/{batch}/cancel")
    worker = workers.Worker(story.worker_id, "w1", {}, ["mini-zh"])
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    client.post(f"/v1/workers/{worker.id}/drain")
    client.post(f"/v1/workers/{worker.id}/resume")
    key = client.post("/v1/keys", json={"name": "shop", "scopes": ["jobs:read"]}).json()["id"]
    client.delete(f"/v1/keys/{key}").raise_for_status()
    licence = api.app.state.shared.catalog.get("zh-v0").licence
    client.post("/v1/models/zh-v0/licence", json={"version": licence.version}).raise_for_status()
    assert noted(story) == [
        ("batch.submit", batch, {"name": "cats"}),
        ("batch.pause", batch, {}),
        ("batch.resume", batch, {}),
        ("dataset.export", dataset, {"batch": batch}),
        ("batch.cancel", batch, {}),
        ("worker.drain", str(worker.id), {}),
        ("worker.resume", str(worker.id), {}),
        ("key.create", key, {"name": "shop", "scopes": ["jobs:read"]}),
        ("key.revoke", key, {}),
        ("licence.accept", "zh-v0", {"licence": licence.name, "version": licence.version}),
    ]


def test_a_bulk_change_is_one_record_with_the_count(
    api: Api, story: Story, caller: Caller, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "STEP_JOBS", 2)
    monkeypatch.setattr(bulk, "MAX_JOBS", 4)
    state, cats = api.app.state.shared, JobFilter(q="猫")
    jobs = [story.submit(prompt="猫") for _ in range(5)]
    story.submit(prompt="花")
    with transaction(story.database) as connection:
        seen = preview(connection, caller.tenant_id, cats)
    moved = bulk.change_tier(state, caller, cats, seen.at, Tier.BULK)
    assert (moved.changed, moved.left_alone, moved.after) == (4, {}, jobs[3])
    with Redis.from_url(settings.redis_url.get_secret_value(), decode_responses=True) as redis, redis.pubsub() as news:
        news.subscribe(CANCELLED_CHANNEL)
        assert bulk.cancel(state, caller, cats, seen.at).changed == 4
        assert bulk.cancel(state, caller, cats, seen.at, after=jobs[3]).changed == 1
        told: set[str] = set()
        while told != set(map(str, jobs)):
            message = news.get_message(ignore_subscribe_messages=True, timeout=5)
            told |= set(message["data"].split()) if message else set()
    assert bulk.retry(state, caller, cats, seen.at).changed == 4
    assert bulk.retry(state, caller, cats, seen.at).left_alone == {"retried_before": 4}
    detail = {"filter": {"q": "猫"}, "until": str(seen.at), "left_alone": {}}
    assert noted(story) == [
        ("jobs.tier", None, detail | {"tier": "bulk", "changed": 4}),
        ("jobs.cancel", None, detail | {"changed": 4}),
        ("jobs.cancel", None, detail | {"changed": 1}),
        ("jobs.retry", None, detail | {"changed": 4}),
    ]
    assert {(row.via, row.request_id) for row in story.rows(NOTES)} == {("dashboard", "r1")}


def test_a_model_whose_licence_is_not_accepted_is_not_retried(api: Api, story: Story, caller: Caller) -> None:
    state, job = api.app.state.shared, story.submit(model="zh-v0", steps=20)
    story.publish(story.started(capacities={"zh-v0": 1}), ImageState.FAILED, error_code="out_of_memory")
    with transaction(story.database) as connection:
        seen = preview(connection, caller.tenant_id, JobFilter())
    report = bulk.retry(state, caller, JobFilter(), seen.at)
    assert (report.changed, report.left_alone) == (0, {"model_not_allowed": 1})
    assert noted(story) == []
    assert story.job(job).state == "failed"


def test_the_first_key_was_made_in_the_shell(story: Story, settings: Settings) -> None:
    made = bootstrap.bootstrap(settings, another=True)
    assert noted(story) == [("key.create", made["id"], {"name": "admin", "scopes": ["admin", "operator"]})]
    (row,) = story.rows(NOTES)
    assert (row.via, row.key_id) == ("shell", UUID(made["id"]))


def test_records_are_read_newest_first_page_by_page_and_only_the_tenants_own(
    api: Api, client: httpx.Client, story: Story, caller: Caller
) -> None:
    jobs = [submit(client) for _ in range(3)]
    for job in jobs:
        client.post(f"/v1/jobs/{job}/cancel")
    with api.client("another tenant") as other:
        other.post(f"/v1/jobs/{submit(other)}/cancel")
    with transaction(story.database) as connection:
        first = find_audit_records(connection, caller.tenant_id, None, 2)
        second = find_audit_records(connection, caller.tenant_id, first[-1].id, 2)
    assert [note.subject for note in (*first, *second)] == jobs[::-1]
    assert {(note.key, note.via, note.action) for note in first} == {("a key of the tests", "api", "job.cancel")}
