"""The retry of a batch renders its failed images again, once, with the same recipes and seeds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from common.batches import retries
from common.batches.plan import Plan
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.errors import Conflict, NotFound
from common.queue.claim import Microbatch
from common.queue.leases import Outcome, publish
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

STORED, FLAGGED, FAILED = ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED
# Of ten prompts with two images each, in their order.
FATES = [STORED] * 4 + [FAILED, STORED] + [FAILED, FAILED] + [FLAGGED, FAILED] + [FLAGGED, STORED] + [STORED] * 8


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def render(farm: BatchStory, fates: list[ImageState]) -> None:
    """Render all that waits; the images end with these states, in the order of their prompts."""
    coming = iter(fates)
    while microbatch := farm.claim(capacity=2):
        farm.start(microbatch)
        finish(farm, microbatch, coming)


def finish(farm: BatchStory, microbatch: Microbatch, fates: Iterator[ImageState]) -> None:
    outcomes = [
        farm.outcome(image, microbatch.lease_id)
        if (fate := next(fates)) == STORED
        else Outcome(image.id, fate, error_code="nan_image" if fate == FAILED else None)
        for image in microbatch.images
    ]
    with transaction(farm.database) as connection:
        publish(connection, microbatch.lease_id, outcomes)


def ended(farm: BatchStory, fates: list[ImageState] = FATES, **more: Any) -> UUID:
    batch_id = farm.expanded(**more)
    render(farm, fates)
    assert farm.end() == [batch_id]
    return batch_id


def expand(farm: BatchStory, retry_id: UUID, chunks: int | None = None) -> int:
    """Expand it a chunk at a time, as several control workers would. Returns the turns; the last one finds nothing."""
    turns = 1
    while farm.expander.work(retry_id, 1e-9) and turns != chunks:
        turns += 1
    return turns


def test_failed_images_are_rendered_again_in_a_batch_of_their_own(
    farm: BatchStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "CHUNK_IMAGES", 8)  # four of its prompts
    batch_id = ended(farm)
    retry_id = farm.retry(batch_id)
    assert (farm.batch(retry_id).state, farm.batch(retry_id).parent_id) == ("expanding", batch_id)
    assert expand(farm, retry_id) == 4  # three chunks, and a look whether there is more
    retry, parents, retry_jobs = farm.batch(retry_id), farm.jobs_of(batch_id), farm.jobs_of(retry_id)
    assert (retry.state, retry.prompts, retry.jobs, retry.images) == ("running", 3, 3, 4)
    assert [retry_job.parent_id for retry_job in retry_jobs] == [parents[place].id for place in (2, 3, 4)]
    assert [retry_job.position for retry_job in retry_jobs] == [0, 1, 2]
    assert [retry_job.recipe for retry_job in retry_jobs] == [parents[place].recipe for place in (2, 3, 4)]
    drawn = [(image.position, image._mapping["index"]) for image in farm.images_of(retry_id)]
    assert drawn == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert [(lane.open, lane.closed) for lane in farm.lanes_of(retry_id)] == [(4, False)]
    seeds = [image.seed for image in farm.claim(capacity=8).images]
    assert seeds == [104, 106, 107, 109]


def test_what_fails_in_a_retry_is_left_to_the_next_one(farm: BatchStory) -> None:
    batch_id = ended(farm)
    retry_id = farm.retry(batch_id)
    expand(farm, retry_id)
    render(farm, [STORED, FAILED, STORED, STORED])
    assert farm.end() == [retry_id]
    with pytest.raises(Conflict, match=f"drawn again already, in batch {retry_id}"):
        farm.retry(batch_id)
    third = farm.retry(retry_id)
    expand(farm, third)
    (retry_job,) = farm.jobs_of(third)
    assert farm.job(farm.job(retry_job.parent_id).parent_id).position == 3
    assert farm.batch(batch_id).state == "ended"


def test_two_requests_at_once_get_the_same_retry(farm: BatchStory) -> None:
    batch_id = ended(farm)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: farm.retry(batch_id), range(8)))
    assert len(set(made)) == 1
    expand(farm, made[0])
    expand(farm, made[0])
    assert (farm.retry(batch_id), len(farm.jobs_of(made[0]))) == (made[0], 3)


def test_what_a_cancelled_retry_did_not_reach_is_left_to_another(farm: BatchStory) -> None:
    batch_id = ended(farm)
    first = farm.retry(batch_id)
    expand(farm, first)
    finish(farm, farm.started(capacity=1), iter([STORED]))
    farm.cancel_batch(first)
    farm.expander.work(first, 60)
    assert farm.end() == [first]
    second = farm.retry(batch_id)
    assert second != first
    expand(farm, second)
    assert [retry_job.recipe["seeds"] for retry_job in farm.jobs_of(second)] == [[106, 107], [108, 109]]


def test_a_retry_is_paused_and_cancelled_while_its_jobs_are_made(
    farm: BatchStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "CHUNK_IMAGES", 6)
    batch_id = ended(farm)
    retry_id = farm.retry(batch_id)
    farm.pause(retry_id)
    assert expand(farm, retry_id, chunks=2) == 2
    assert (farm.claim(), farm.batch(retry_id).jobs) == (None, 3)
    farm.resume(retry_id)
    assert len(farm.started(capacity=8).images) == 4
    farm.cancel_batch(retry_id)
    assert not farm.expander.work(retry_id, 60)
    assert {job.state for job in farm.jobs_of(retry_id)} == {"cancelled"}
    assert farm.end() == [retry_id]


def test_a_matrix_keeps_its_variants(farm: BatchStory) -> None:
    plan = Plan(defaults={"model": "mini-zh"}, matrix={"steps": [2, 3]}, images_per_prompt=1, seed=5)
    batch_id = farm.expanded(["红色的圆形", "蓝色的星形"], plan=plan)
    while microbatch := farm.claim():
        farm.start(microbatch)
        finish(farm, microbatch, iter([FAILED] * 8))
    farm.end()
    retry_id = farm.retry(batch_id)
    expand(farm, retry_id)
    drawn = [(job.recipe["prompt"], job.recipe["steps"], job.recipe["seeds"]) for job in farm.jobs_of(retry_id)]
    assert drawn == [
        (prompt, steps, [seed]) for seed, prompt in ((5, "红色的圆形"), (6, "蓝色的星形")) for steps in (2, 3)
    ]
    assert [lane.open for lane in farm.lanes_of(retry_id)] == [2, 2]


def test_a_batch_names_the_retry_that_was_not_cancelled(client: httpx.Client, farm: BatchStory) -> None:
    batch_id = ended(farm)

    def named() -> str | None:
        (listed,) = [one for one in client.get("/v1/batches").json()["items"] if one["id"] == str(batch_id)]
        assert client.get(f"/v1/batches/{batch_id}").json() == listed
        return listed["retry_id"]

    first = farm.retry(batch_id)
    assert named() == str(first)
    farm.cancel_batch(first)
    farm.expander.work(first, 60)
    assert farm.end() == [first]
    assert named() is None
    second = farm.retry(batch_id)
    assert named() == str(second)


def test_what_cannot_be_retried_says_why(farm: BatchStory) -> None:
    batch_id = farm.expanded()
    with pytest.raises(Conflict, match="has not ended; what failed"):
        farm.retry(batch_id)
    render(farm, [FLAGGED] + [STORED] * 19)
    farm.end()
    with pytest.raises(Conflict, match=f"Nothing of batch {batch_id} failed"):
        farm.retry(batch_id)
    cancelled = farm.expanded()
    farm.close(cancelled)
    with pytest.raises(Conflict, match="still being settled"):
        farm.retry(cancelled)
    other = farm.expanded(tenant="another")
    with pytest.raises(NotFound):
        farm.retry(other)


def test_over_http(client: httpx.Client, farm: BatchStory, settings: Settings) -> None:
    batch_id = ended(farm)
    redis = Broker(settings)._redis
    redis.flushdb()

    def post(name: Any) -> httpx.Response:
        return client.post(f"/v1/batches/{name}/retry-failed")

    first, again = post(batch_id), post(batch_id)
    made = first.json()
    assert (first.status_code, again.status_code, again.headers["Idempotency-Replayed"]) == (201, 201, "true")
    assert first.headers["Location"].endswith(f"/v1/batches/{made['id']}")
    assert (made["id"], made["parent_id"], made["state"]) == (again.json()["id"], str(batch_id), "expanding")
    assert redis.llen("control") == 1
    notes = farm.rows("SELECT subject FROM audit WHERE action = 'batch.retry_failed'")
    assert [note.subject for note in notes] == [str(batch_id)]
    expand(farm, UUID(made["id"]))
    assert client.get(f"/v1/batches/{batch_id}").json()["retry_id"] == made["id"]
    (job, *_) = client.get("/v1/jobs", params={"batch": made["id"]}).json()["items"]
    assert (job["batch_id"], [image["seed"] for image in job["images"]]) == (made["id"], [109])
    answer = post(made["id"])
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert post(UUID(int=7)).status_code == 404


def test_its_models_must_be_in_the_catalogue_and_their_licences_accepted(
    client: httpx.Client, farm: BatchStory
) -> None:
    batch_id = ended(farm)
    for model, status in (("gone", 422), ("zh-v0", 403)):
        with farm.database.begin() as connection:
            connection.execute(text("UPDATE lanes SET model = :model"), {"model": model})
        assert client.post(f"/v1/batches/{batch_id}/retry-failed").status_code == status
    assert len(client.get("/v1/batches").json()["items"]) == 1
