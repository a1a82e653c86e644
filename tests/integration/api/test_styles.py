"""Styles over HTTP: the list, a job, and a batch that draws its prompts plain and in styles."""

import httpx
import pytest
from sqlalchemy import text

from common.catalog.catalog import read
from common.config import SHIPPED_CATALOG, Settings
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
PHOTO = read(SHIPPED_CATALOG).styles["photo"]


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def test_the_styles_of_the_catalogue_are_listed(client: httpx.Client) -> None:
    items = {item["name"]: item for item in client.get("/v1/styles").json()["items"]}
    assert list(items) == list(read(SHIPPED_CATALOG).styles)
    assert items["photo"] == {
        "name": "photo",
        "description": PHOTO.description,
        "prefix": "",
        "suffix": PHOTO.suffix,
        "negative": PHOTO.negative,
    }


def test_a_job_says_what_its_style_added_and_waits_for_workers_that_know_styles(
    client: httpx.Client, story: Story
) -> None:
    given = {"prompt": "红色的圆形", **LOOK}
    job = client.post("/v1/jobs", json={**given, "style": "photo"}).raise_for_status().json()
    assert job["recipe"]["prompt"] == f"红色的圆形{PHOTO.suffix}"
    assert job["recipe"]["style"] == {
        "name": "photo",
        "prefix": "",
        "suffix": PHOTO.suffix,
        "negative": PHOTO.negative,
    }
    plain = client.post("/v1/jobs", json={**given, "style": "plain"}).raise_for_status().json()
    assert (plain["recipe"]["prompt"], plain["recipe"]["style"]) == ("红色的圆形", None)
    assert [row.needs_code for row in story.rows("SELECT needs_code FROM lanes ORDER BY id")] == [9, 1]
    retried = client.post(f"/v1/jobs/{job['id']}/cancel"), client.post(f"/v1/jobs/{job['id']}/retry")
    assert retried[1].json()["recipe"] == job["recipe"]
    dry = client.post("/v1/jobs?dry_run=true", json={**given, "style": "photo"}).json()
    assert dry["recipe"]["prompt"] == job["recipe"]["prompt"]
    wrong = client.post("/v1/jobs", json={**given, "style": "nothing"})
    assert [error["field"] for error in wrong.json()["errors"]] == ["style"]


def test_a_matrix_of_styles_draws_each_prompt_in_each_from_one_seed(client: httpx.Client, farm: BatchStory) -> None:
    draft = {"prompts": ["红色的圆形", "蓝色的月亮"], "defaults": LOOK, "seed": 7}
    made = client.post("/v1/batches", json={**draft, "matrix": {"style": ["plain", "blackboard"]}})
    assert (made.status_code, made.json()["variants"]) == (201, 2)
    batch_id = made.json()["id"]
    assert farm.rows("SELECT needs_code FROM batches") == [(9,)]
    farm.expander.work(batch_id, 60)
    recipes = [job.recipe for job in farm.jobs_of(batch_id)]
    assert [(recipe["prompt"], recipe["seeds"]) for recipe in recipes] == [
        ("红色的圆形", [7]),
        ("红色的圆形，黑色背景", [7]),
        ("蓝色的月亮", [8]),
        ("蓝色的月亮，黑色背景", [8]),
    ]
    assert ["style" in recipe for recipe in recipes] == [False, True, False, True]
    wrong = client.post("/v1/batches", json={**draft, "matrix": {"style": ["plain", "nothing"]}}).json()
    assert [error["field"] for error in wrong["errors"]] == ["matrix.style"]


def test_a_style_makes_no_prompt_that_is_too_long_for_the_model(client: httpx.Client, farm: BatchStory) -> None:
    """Of two variants of a line the tokens of both are counted, not only those of one."""
    longest = "红" * 46  # mini-zh reads 48 tokens, two of them special
    assert client.post("/v1/jobs", json={"prompt": longest, **LOOK}).status_code == 201
    assert client.post("/v1/jobs", json={"prompt": longest, **LOOK, "style": "blackboard"}).status_code == 422
    for styles in (["plain", "blackboard"], ["blackboard", "plain"]):
        draft = {"prompts": [longest], "defaults": LOOK, "seed": 7, "matrix": {"style": styles}}
        batch_id = client.post("/v1/batches", json=draft).raise_for_status().json()["id"]
        farm.expander.work(batch_id, 60)
        assert "tokens; mini-zh reads at most 48" in farm.batch(batch_id).error_message
    with farm.database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs WHERE batch_id IS NOT NULL")).scalar() == 0
