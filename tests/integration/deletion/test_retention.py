"""What is older than a tenant keeps it is deleted: pictures, whose images say so, and rows with all they contain."""

from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.deletion import retention
from common.enums import ImageState
from common.storage import Storage
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from tests.support.workers import bucket_of
from worker.control.sweep import Sweep


@pytest.fixture
def sweep(settings: Settings, story: Story) -> Sweep:
    return Sweep(settings, story.database, Broker(settings), Storage(settings))


@pytest.fixture
def story(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def keep(story: Story, *, tenant: str = "somebody", **days: int) -> None:
    named = {"pictures": days.get("pictures"), "rows": days.get("rows"), "tenant": story.tenant(tenant)}
    with story.database.begin() as connection:
        statement = "UPDATE tenants SET keep_pictures_days = :pictures, keep_rows_days = :rows WHERE id = :tenant"
        connection.execute(text(statement), named)


def age(story: Story, days: float) -> None:
    """Let all that has ended have ended so many days before."""
    with story.database.begin() as connection:
        for table in ("images", "jobs", "batches", "datasets"):
            statement = f"UPDATE {table} SET finished_at = finished_at - make_interval(secs => 86400 * :days)"
            connection.execute(text(f"{statement} WHERE finished_at IS NOT NULL"), {"days": days})
        connection.execute(text("UPDATE lanes SET pictures_kept_from = NULL"))


def make_older(story: Story, job_id: UUID) -> UUID:
    """Give a job the id of one that was made 40 days before: ids have the time in them."""
    older = UUID(int=job_id.int - (40 * 86_400_000 << 80))
    with story.database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (id, tenant_id, tier, state, recipe, count, open, finished_at)"
                " SELECT :new, tenant_id, tier, state, recipe, count, open, finished_at FROM jobs WHERE id = :old"
            ),
            {"new": older, "old": job_id},
        )
        connection.execute(text("UPDATE images SET job_id = :new WHERE job_id = :old"), {"new": older, "old": job_id})
        connection.execute(text("DELETE FROM jobs WHERE id = :old"), {"old": job_id})
    return older


def rendered(story: BatchStory, *, tenant: str = "somebody", **fields: Any) -> UUID:
    """A job whose pictures are in storage."""
    job_id = story.submit(tenant, **fields)
    render(story)
    return job_id


def render(story: BatchStory) -> None:
    while microbatch := story.claim(capacity=16):
        story.start(microbatch)
        for image in microbatch.images:
            story.storage.put(story.outcome(image, microbatch.lease_id).key or "", b"x", "image/png")
        story.publish(microbatch)
    story.end()


def test_old_pictures_go_and_their_images_say_so(
    story: BatchStory, client: httpx.Client, settings: Settings, sweep: Sweep
) -> None:
    old = rendered(story, count=2)
    keep(story, pictures=30)
    age(story, 29)
    sweep.delete()
    assert len(bucket_of(settings)) == 2
    age(story, 2)
    new = rendered(story)
    sweep.delete()

    assert len(bucket_of(settings)) == 1
    image = client.get(f"/v1/jobs/{old}").json()["images"][0]
    assert (image["state"], image["url"], image["sha256"] is None) == ("stored", None, False)
    assert image["picture_deleted_at"]
    for path in ("content", "thumbnail"):
        answer = client.get(f"/v1/images/{image['id']}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "gone")
        assert "keeps pictures for a number of days" in answer.json()["detail"]
    assert client.get(f"/v1/images/{image['id']}").status_code == 200
    assert (
        client.post("/v1/jobs", json={"prompt": "红色", "model": "mini-zh", "source": image["id"]}).status_code == 422
    )
    assert client.get(f"/v1/jobs/{new}").json()["images"][0]["url"]
    assert not story.count("objects_to_delete")
    assert story.balances()


def test_pictures_go_in_steps_and_none_is_left_behind(story: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_PICTURES", 3)
    for _ in range(4):
        rendered(story, count=2)
    keep(story, pictures=1)
    age(story, 2)
    steps = 0
    while step(story):
        steps += 1
        assert steps < 10
    assert steps == 3
    assert not story.rows("SELECT FROM images WHERE picture_deleted_at IS NULL")
    assert story.count("objects_to_delete") == 8


def step(story: Story) -> int:
    with transaction(story.database) as connection:
        return retention.delete_pictures(connection)


def test_old_rows_go_with_all_that_they_contain(story: BatchStory, settings: Settings, sweep: Sweep) -> None:
    old, batch = rendered(story), story.expanded()
    render(story)
    old = make_older(story, old)
    assert story.batch(batch).finished_at
    keep(story, rows=30)
    age(story, 29)
    sweep.delete()
    assert story.count("jobs") == 11
    age(story, 2)
    new = rendered(story)
    waiting = story.submit()
    sweep.delete()

    assert {row.id for row in story.rows("SELECT id FROM jobs")} == {new, waiting}
    assert (story.count("batches"), story.count("images"), story.count("tombstones")) == (0, 2, 0)
    assert len([key for key in bucket_of(settings) if key.startswith("images/")]) == 1
    assert not story.count("objects_to_delete")
    assert story.balances()


def test_what_a_tenant_keeps_for_good_stays_and_so_does_what_is_anothers(
    story: BatchStory, settings: Settings, sweep: Sweep
) -> None:
    kept, others = rendered(story), rendered(story, tenant="another")
    keep(story, tenant="another", pictures=1, rows=1)
    others = make_older(story, others)
    kept = make_older(story, kept)
    age(story, 1000)
    sweep.delete()
    assert [row.id for row in story.rows("SELECT id FROM jobs")] == [kept]
    assert story.images(kept)[0].picture_deleted_at is None
    assert len(bucket_of(settings)) == 1


def test_what_a_dataset_finds_deleted_by_age_is_in_its_tables(story: BatchStory, sweep: Sweep) -> None:
    from common.datasets import contents, lifecycle
    from common.datasets.layout import DatasetPlan

    batch = story.expanded()
    render(story)
    keep(story, pictures=1)
    age(story, 2)
    sweep.delete()
    with transaction(story.database) as connection:
        dataset_id = lifecycle.submit(connection, story.tenant(), batch, DatasetPlan())
        dataset = lifecycle.acquire(connection, dataset_id, 30)
        jobs = contents.finished_jobs(connection, dataset, 0, 100, 100)
    images = [image for job in jobs for image in job.images]
    assert len(images) == 20
    assert {(image["state"], image["error_code"], image["key"]) for image in images} == {
        (ImageState.FAILED, "picture_deleted", None)
    }
