"""The operator's policy on every way that a prompt comes in."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from api.services import bulk
from common.accounts import keys
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.policy.policy import Policy, load
from common.queue import leases
from common.queue.leases import Outcome
from common.queue.search import JobFilter, preview
from common.storage import Storage
from tests.support.batch_stories import BatchStory
from tests.support.serving import Api, serving
from tests.support.stories import CATALOG, Story
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
INNOCENT, REFUSED = "红色的圆形", "一把手 槍"
SAID = "is refused by the rule 'weapons' of this farm (policy 7)"


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "policy.toml").write_text('version = "7"\n[[rules]]\nname = "weapons"\nterms = ["手枪"]', "utf-8")
    return load(tmp_path / "policy.toml")


@pytest.fixture
def strict_api(settings: Settings, database: Engine, policy: Policy, tmp_path: Path) -> Iterator[Api]:
    """An API with the policy."""
    with serving(settings.model_copy(update={"policy": tmp_path / "policy.toml"}), database) as api:
        yield api


@pytest.fixture
def strict(strict_api: Api) -> Iterator[httpx.Client]:
    """A client of the same tenant as `client`."""
    with strict_api.client() as client:
        yield client


@pytest.fixture
def expander(story: Story, settings: Settings, policy: Policy) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG, policy)


def count_jobs(story: Story) -> int:
    with story.database.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


@pytest.mark.parametrize("dry_run", ["", "?dry_run=true"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_job_is_refused_and_nothing_is_stored(strict: httpx.Client, story: Story, dry_run: str, field: str) -> None:
    answer = strict.post(f"/v1/jobs{dry_run}", json={"prompt": INNOCENT, **LOOK, field: REFUSED})
    assert (answer.status_code, answer.json()["code"]) == (422, "prompt_refused")
    assert answer.json()["errors"] == [{"field": field, "message": SAID}]
    assert (answer.json()["rule"], answer.json()["policy"]) == ("weapons", "7")
    assert "枪" not in answer.text
    assert "槍" not in answer.text
    assert count_jobs(story) == 0
    assert strict.post(f"/v1/jobs{dry_run}", json={"prompt": INNOCENT, **LOOK}).is_success


def batch_of(client: httpx.Client, expander: Expander, **fields: Any) -> dict[str, Any]:
    draft = {"prompts": [INNOCENT, REFUSED, INNOCENT], "defaults": LOOK, "seed": 7, **fields}
    batch_id = client.post("/v1/batches", json=draft).raise_for_status().json()["id"]
    expander.work(batch_id, 60)
    found: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
    return found


def test_a_refused_line_of_a_batch_is_wrong_like_any_other(
    strict: httpx.Client, expander: Expander, story: Story
) -> None:
    assert SAID in batch_of(strict, expander)["error"]["message"]
    assert count_jobs(story) == 0
    batch = batch_of(strict, expander, skip_bad=True)
    assert (batch["prompts"], batch["skipped"], batch["error"]) == (2, 1, None)
    skipped = [(row.line, row.reason) for row in story.rows("SELECT line, reason FROM skipped_lines")]
    assert skipped == [(2, f"prompt {SAID}.")]
    assert count_jobs(story) == 2


def test_a_variant_of_a_matrix_with_a_refused_negative_prompt(strict: httpx.Client, expander: Expander) -> None:
    batch = batch_of(strict, expander, prompts=[INNOCENT], matrix={"negative_prompt": ["模糊", REFUSED]})
    assert f"negative_prompt {SAID}" in batch["error"]["message"]


def test_the_dry_run_of_a_batch_lists_refused_lines(strict: httpx.Client) -> None:
    draft = {"prompts": [INNOCENT, REFUSED], "defaults": LOOK, "seed": 7}
    found = strict.post("/v1/batches?dry_run=true", json=draft).raise_for_status().json()
    assert (found["bad"], found["bad_lines"]) == (1, [{"line": 2, "reason": f"prompt {SAID}."}])


def test_a_retry_is_judged_anew(client: httpx.Client, strict: httpx.Client, story: Story) -> None:
    """The job was accepted before there was a policy."""
    jobs = [client.post("/v1/jobs", json={"prompt": prompt, **LOOK}).json()["id"] for prompt in (INNOCENT, REFUSED)]
    for job in jobs:
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    codes = [strict.post(f"/v1/jobs/{job}/retry").json().get("code") for job in jobs]
    assert codes == [None, "prompt_refused"]


def test_a_retry_of_all_that_match_leaves_refused_jobs_alone(
    client: httpx.Client, strict_api: Api, strict: httpx.Client, story: Story
) -> None:
    for prompt in (INNOCENT, REFUSED):
        job = client.post("/v1/jobs", json={"prompt": prompt, **LOOK}).json()["id"]
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    secret = strict.headers["Authorization"].removeprefix("Bearer ")
    with transaction(story.database) as connection:
        caller = keys.authenticate(connection, secret, strict_api.settings.key_pepper.get_secret_value())
        seen = preview(connection, caller.tenant_id, JobFilter())
    report = bulk.retry(strict_api.app.state.shared, caller, JobFilter(), seen.at)
    assert (report.changed, report.left_alone) == (1, {"prompt_refused": 1})


def test_a_retry_of_a_batch_leaves_refused_jobs_out_and_says_so(
    story: Story, settings: Settings, expander: Expander
) -> None:
    farm = BatchStory(story, settings)
    batch_id = farm.expanded([INNOCENT, REFUSED, INNOCENT])
    while microbatch := farm.claim(capacity=2):
        farm.start(microbatch)
        failed = [Outcome(image.id, ImageState.FAILED, error_code="nan_image") for image in microbatch.images]
        with transaction(farm.database) as connection:
            leases.publish(connection, microbatch.lease_id, failed)
    assert farm.end() == [batch_id]
    retry_id = farm.retry(batch_id)
    expander.work(retry_id, 60)
    retry = farm.batch(retry_id)
    assert [job.recipe["prompt"] for job in farm.jobs_of(retry_id)] == [INNOCENT, INNOCENT]
    assert (retry.jobs, retry.images, retry.warned) == (2, 4, 1)
    assert retry.warnings == [f"1 failed jobs are not rendered again: prompt {SAID}."]


def test_a_refusal_is_logged_without_the_prompt(strict: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "huafang"):
        strict.post("/v1/jobs", json={"prompt": REFUSED, **LOOK}, headers={"X-Request-Id": "r1"})
    (line,) = [record.getMessage() for record in caplog.records if "prompt_refused" in record.getMessage()]
    assert "weapons" in line
    assert "request=r1" in line
    assert "槍" not in caplog.text


def test_the_negative_prompt_of_a_model_is_not_judged(settings: Settings, database: Engine, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[[rules]]\nname = "a"\nterms = ["水印"]')
    model = next(one.name for one in CATALOG.models.values() if "水印" in one.negative_prompt)
    with serving(settings.model_copy(update={"policy": tmp_path / "policy.toml"}), database) as api, api.client() as it:
        draft = {"prompt": INNOCENT, "model": model}
        assert it.post("/v1/jobs?dry_run=true", json=draft).is_success
        assert it.post("/v1/jobs?dry_run=true", json={**draft, "negative_prompt": "水印"}).status_code == 422
