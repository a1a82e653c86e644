"""Estimates of batches and jobs, before and after their submission, by what the farm published and what waits."""

import time
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from common.batches.plan import Plan
from common.config import Settings
from common.db import transaction
from common.enums import Tier
from common.queue import workers
from common.queue.workers import Load
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from tests.support.workers import SLOW, MakeWorker, until

LOOK = {"model": "mini-zh", "steps": 2, "width": 128, "height": 128}
PLAN = Plan(defaults=LOOK, images_per_prompt=1, seed=100)
MICROBATCH_S = 4.0  # of 8 images
SLACK_S = 6.0  # that the check of the prompts may take on a busy machine, and the notice of the end


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def known(farm: BatchStory) -> BatchStory:
    """A farm with one worker that published six microbatches lately."""
    beat(farm, resident=["mini-zh"])
    for _ in range(6):
        farm.submit(tenant="another", count=8, **LOOK)
        farm.publish(farm.started())
    with farm.database.begin() as connection:
        connection.execute(LET_THEM_TAKE, {"seconds": MICROBATCH_S})
    return farm


def beat(farm: BatchStory, **facts: Any) -> None:
    given: dict[str, Any] = {"models": ["mini-zh"], "capacity": {"mini-zh": 8}}
    worker = workers.Worker(farm.worker_id, "w1", {}, **(given | facts))
    with transaction(farm.database) as connection:
        workers.heartbeat(connection, worker, ready=True)


def prompts(count: int, name: str = "圆形") -> list[str]:
    return [f"红色的{name} {number}" for number in range(count)]


def plan(client: httpx.Client, images: int, **fields: Any) -> dict[str, Any]:
    body = {"prompts": prompts(images), "defaults": LOOK, "seed": 1, **fields}
    return dict(post(client, "/v1/batches?dry_run=true", body)["estimate"])


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer; a machine that is too busy to begin is asked again."""
    answer = until(lambda: found if (found := client.post(path, json=body)).status_code != 503 else None)
    assert answer.is_success, answer.text
    return dict(answer.json())


def read(client: httpx.Client, batch_id: UUID) -> dict[str, Any]:
    return dict(client.get(f"/v1/batches/{batch_id}").raise_for_status().json())


def in_time(seconds: float, expected: float) -> bool:
    return expected <= seconds <= expected + SLACK_S


def test_a_plan_counts_from_the_claim_to_the_publication(known: BatchStory, client: httpx.Client) -> None:
    found = plan(client, 80)
    assert in_time(found["seconds"], 10 * MICROBATCH_S)
    assert found["seconds_p90"] > 1.05 * found["seconds"]
    assert found["unknown"] is None
    assert found["gpu_seconds"] == pytest.approx(80 * 0.25)  # which pipeline calls took, without what came after
    assert in_time(plan(client, 80, defaults={**LOOK, "steps": 20})["seconds"], 100 * MICROBATCH_S)


def test_what_is_ahead_counts_before_and_after_the_submission(known: BatchStory, client: httpx.Client) -> None:
    known.expanded(prompts(160, "星形"), plan=PLAN)
    planned = plan(client, 80)
    assert in_time(planned["seconds"], 30 * MICROBATCH_S)
    batch_id = known.expanded(prompts(80), plan=PLAN)
    waiting = read(client, batch_id)
    assert in_time(waiting["eta_seconds"], 30 * MICROBATCH_S)
    assert waiting["eta_seconds_p90"] > waiting["eta_seconds"]
    assert abs(waiting["eta_seconds"] - planned["seconds"]) <= SLACK_S
    assert in_time(read(client, batch_id)["eta_seconds"], 30 * MICROBATCH_S)  # also on a page that asks again

    known.submit(tenant="another", count=64, tier=Tier.INTERACTIVE, **LOOK)
    assert in_time(read(client, batch_id)["eta_seconds"], 38 * MICROBATCH_S)
    assert in_time(plan(client, 8, tier="interactive")["seconds"], 2 * MICROBATCH_S)  # two tenants share


def test_the_share_of_another_tenant_counts(known: BatchStory, client: httpx.Client) -> None:
    known.expanded(prompts(400, "星形"), plan=PLAN, tenant="another")
    assert in_time(plan(client, 80)["seconds"], 20 * MICROBATCH_S)


def test_a_load_counts_where_no_worker_has_the_model(known: BatchStory, client: httpx.Client) -> None:
    warm = plan(client, 8)["seconds"]
    beat(known, resident=["another"], loads={"mini-zh": Load(500.0), "another": Load(900.0, is_first=True)})
    assert plan(client, 8)["seconds"] == pytest.approx(warm + 500, abs=SLACK_S)
    beat(known, resident=["mini-zh"], loads={"mini-zh": Load(500.0)})
    assert plan(client, 8)["seconds"] == pytest.approx(warm, abs=SLACK_S)


def test_a_job_is_estimated_as_a_batch_is(known: BatchStory, client: httpx.Client) -> None:
    known.submit(count=16, **LOOK)
    job = {"prompt": "红色的圆形", "count": 8, "seed": 1, **LOOK}
    planned = post(client, "/v1/jobs?dry_run=true", job)["estimate"]
    assert planned["seconds"] == pytest.approx(3 * MICROBATCH_S, abs=0.2)
    made = post(client, "/v1/jobs", job)
    found = client.get(f"/v1/jobs/{made['id']}").json()
    assert (found["position"], found["eta_seconds"]) == (16, pytest.approx(3 * MICROBATCH_S, abs=0.2))
    assert found["eta_seconds_p90"] == pytest.approx(planned["seconds_p90"])
    known.started()
    assert client.get(f"/v1/jobs/{made['id']}").json()["eta_seconds"] == pytest.approx(3 * MICROBATCH_S, rel=0.2)


def test_what_is_not_known_says_why(farm: BatchStory, client: httpx.Client) -> None:
    def why() -> tuple[float | None, str]:
        found = plan(client, 8)
        assert found["seconds_p90"] is None
        return found["seconds"], found["unknown"]["code"]

    assert why() == (None, "no_worker")
    beat(farm)
    assert why() == (None, "no_history")
    assert plan(client, 8)["bytes_unknown"]["code"] == "no_sizes"
    batch_id = farm.batch_of(prompts(3), plan=PLAN)
    assert read(client, batch_id)["eta_unknown"]["code"] == "preparing"
    farm.expander.work(batch_id, 60)
    assert read(client, batch_id)["eta_unknown"]["code"] == "no_history"
    farm.pause(batch_id)
    assert read(client, batch_id)["eta_unknown"]["code"] == "paused"
    job = client.get("/v1/jobs").json()["items"][0]
    assert (job["eta_seconds"], job["eta_unknown"]["code"]) == (None, "batch_paused")


def test_a_model_that_was_not_rendered_for_long_is_still_known(
    known: BatchStory, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.estimates.farm.RECENT_LEASES", 0)
    assert in_time(plan(client, 80)["seconds"], 10 * MICROBATCH_S)


def test_a_dry_run_counts_doubles(farm: BatchStory, client: httpx.Client) -> None:
    given = [*prompts(3), *prompts(2), ""]
    body = {"prompts": given, "defaults": LOOK, "skip_bad": True, "matrix": {"guidance": [1.5, 3]}}
    found = post(client, "/v1/batches?dry_run=true", body)
    assert (found["checked_prompts"], found["bad"], found["distinct"], found["jobs"]) == (6, 1, 3, 10)


def test_a_plan_holds_on_a_real_worker(farm: BatchStory, client: httpx.Client, make_worker: MakeWorker) -> None:
    """Also after other recipes of the model, of which a picture took a tenth. A busy machine slows both sides down."""
    worker = make_worker(device=SLOW)
    worker.loop.start()
    look = {**LOOK, "steps": 20}

    def real_s(images: int, **fields: Any) -> float:
        body = {"prompts": prompts(images), "defaults": look | fields, "seed": 1}
        batch_id = UUID(post(client, "/v1/batches", body)["id"])
        began = time.monotonic()
        farm.expander.work(batch_id, 60)
        until(lambda: worker.loop.run() or read(client, batch_id)["images"]["stored"] == images)
        return time.monotonic() - began

    until(lambda: worker.loop.is_ready)
    real_s(32)
    real_s(64, steps=2)
    worker.heartbeat.beat()
    planned = plan(client, 80, defaults=look)
    assert 0.4 < real_s(80) / planned["seconds"] < 2.5


def test_a_batch_changes_its_tier(farm: BatchStory, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.control.batch_expander.CHUNK_IMAGES", 4)
    batch_id = farm.batch_of(prompts(10), plan=PLAN)
    farm.expander.work(batch_id, 0)  # checks it, and expands one chunk
    farm.expander.work(batch_id, 0)
    done = post(client, f"/v1/batches/{batch_id}/tier", {"tier": "interactive"})
    assert (done["batch"]["tier"], done["goes_on"]) == ("interactive", False)
    assert 0 < done["changed"] < 10
    farm.expander.work(batch_id, 60)
    assert farm.lane_counts() == {"bulk": 0, "interactive": 10}
    assert {job["tier"] for job in client.get("/v1/jobs").json()["items"]} == {"interactive"}
    assert farm.balances()
    [record] = farm.rows("SELECT detail FROM audit WHERE action = 'batch.tier'")
    assert record.detail == {"tier": "interactive"}
    client.post(f"/v1/batches/{batch_id}/cancel")
    assert client.post(f"/v1/batches/{batch_id}/tier", json={"tier": "bulk"}).status_code == 409


# Published microbatches took so long, one after the other, each claimed just before the end of the one before.
LET_THEM_TAKE = text("""
    WITH numbered AS (
        SELECT id, row_number() OVER (ORDER BY id) AS number, now() - interval '600 s' AS began FROM leases),
    timed AS (
        UPDATE leases SET claimed_at = began + make_interval(secs => (number - 1) * :seconds - 0.3),
            started_at = began + make_interval(secs => (number - 1) * :seconds - 0.1),
            ended_at = began + make_interval(secs => number * :seconds)
        FROM numbered WHERE leases.id = numbered.id)
    UPDATE images SET render_ms = 250
""")
