"""Templates over HTTP: a batch, its dry run, its limits; and the warnings of jobs whose prompts look like templates."""

from typing import Any

import httpx
import pytest

from common.broker import Broker
from common.config import Settings
from common.storage import Storage
from tests.support.serving import serving
from tests.support.stories import CATALOG, Story
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 2, "width": 64, "height": 64}
TEMPLATE = "{红|蓝}色的{圆形|正方形}"
MADE = ["红色的圆形", "红色的正方形", "蓝色的圆形", "蓝色的正方形"]


@pytest.fixture
def expander(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


def draft(*prompts: str, **fields: Any) -> dict[str, Any]:
    return {"prompts": list(prompts), "defaults": LOOK, "seed": 7, "template": True, **fields}


def test_a_template_becomes_all_its_combinations(client: httpx.Client, expander: Expander) -> None:
    given = draft(TEMPLATE, "__颜色__色的猫", template={"wildcards": {"颜色": ["黑", "白"]}})
    dry = client.post("/v1/batches?dry_run=true", json=given).raise_for_status().json()
    assert (dry["prompts"], dry["jobs"], dry["images"], dry["bad"], dry["warned"]) == (2, 6, 6, 0, 0)
    made = client.post("/v1/batches", json=given).raise_for_status().json()
    assert made["template"] == {"samples": None, "wildcards": ["颜色"]}
    expander.work(made["id"], 60)
    batch = client.get(f"/v1/batches/{made['id']}").json()
    assert (batch["prompts"], batch["jobs"], batch["images"]["total"]) == (6, 6, 6)
    jobs = client.get("/v1/jobs", params={"batch": made["id"]}).json()["items"][::-1]
    assert [job["recipe"]["prompt"] for job in jobs] == [*MADE, "黑色的猫", "白色的猫"]
    assert [job.get("template_vars") for job in jobs[3:5]] == [{"1": "蓝", "2": "正方形"}, {"颜色": "黑"}]
    first = [recipe["seeds"] for recipe in dry["recipes"]]
    assert first == [job["recipe"]["seeds"] for job in jobs[:5]] == [[7], [8], [9], [10], [11]]


def test_the_dry_run_shows_the_samples_that_the_batch_draws(client: httpx.Client, expander: Expander) -> None:
    given = draft(TEMPLATE, template={"samples": 5})
    dry = client.post("/v1/batches?dry_run=true", json=given).raise_for_status().json()
    batch_id = client.post("/v1/batches", json=given).raise_for_status().json()["id"]
    expander.work(batch_id, 60)
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    assert [recipe["prompt"] for recipe in dry["recipes"]] == [job["recipe"]["prompt"] for job in jobs]
    assert len(jobs) == 5


def test_what_a_template_makes_is_counted_before_it_is_stored(settings: Settings, database: Any, story: Story) -> None:
    """The limits of a tenant see the prompts that it makes, not the one line."""
    with serving(settings.model_copy(update={"limit_waiting_images": 3}), database) as api, api.client() as client:
        refused = client.post("/v1/batches", json=draft(TEMPLATE))
        assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
        assert client.post("/v1/batches", json=draft("{红|蓝}色的圆形")).status_code == 201
    assert story.count("batches") == 1


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ("yes", "template"),
        ({"samples": 0}, "template"),
        ({"wildcards": {"a": ["{b}"]}}, "template"),
        ({"wildcards": {"a": "b"}}, "template"),
    ],
)
def test_a_wrong_option_is_refused(client: httpx.Client, template: Any, field: str) -> None:
    answer = client.post("/v1/batches", json=draft(TEMPLATE, template=template))
    assert answer.status_code == 422
    assert {error["field"].partition(".")[0] for error in answer.json()["errors"]} == {field}


def test_a_template_that_is_not_asked_for_is_warned_of(client: httpx.Client) -> None:
    for prompt, option in (
        (TEMPLATE, "--template"),
        ("__颜色__的圆形", "--template"),
        ("圆<lora:ink:1>", "--lora ink:1"),
    ):
        job = client.post("/v1/jobs", json={"prompt": prompt, **LOOK}).raise_for_status().json()
        assert job["recipe"]["prompt"] == prompt
        assert any(option in warning for warning in job["warnings"]), job["warnings"]
        for query, given in (("/v1/jobs", {"prompt": prompt, **LOOK}), ("/v1/batches", draft(prompt, template=False))):
            dry = client.post(f"{query}?dry_run=true", json=given).raise_for_status().json()
            assert any(option in warning for warning in dry["warnings"]), dry


def test_the_policy_judges_what_a_template_makes(settings: Settings, database: Any, tmp_path: Any) -> None:
    (tmp_path / "policy.toml").write_text('version = "7"\n[[rules]]\nname = "a"\nterms = ["蓝色的正方形"]', "utf-8")
    strict = settings.model_copy(update={"policy": tmp_path / "policy.toml"})
    with serving(strict, database) as api, api.client() as client:
        dry = client.post("/v1/batches?dry_run=true", json=draft(TEMPLATE, "{红|绿}色的圆形")).json()
    assert [(line["line"], "refused by the rule 'a'" in line["reason"]) for line in dry["bad_lines"]] == [(1, True)]
