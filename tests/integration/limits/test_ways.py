"""Every way by which images come to wait counts, and a refusal stores nothing."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from common.config import Settings
from common.enums import ImageState
from tests.support.batch_stories import BatchStory
from tests.support.limits import allow_tiers, images, limit, reached
from tests.support.stories import Story

JOB = {"prompt": "红色的圆形", "model": "mini-zh", "steps": 2}
BATCH = {"prompts": ["红色的圆形", "绿色的三角形", "蓝色的星形"], "defaults": {"model": "mini-zh", "steps": 2}}
DAY_S = 86_400


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def submitted(client: httpx.Client, route: str = "/v1/jobs", **fields: Any) -> dict[str, Any]:
    answer = client.post(route, json={**(JOB if route == "/v1/jobs" else BATCH), **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def rendered(story: Story, state: ImageState = ImageState.STORED) -> None:
    """What waits ends."""
    error = {"error_code": "poison", "error_message": "It cannot be rendered."} if state == ImageState.FAILED else {}
    while microbatch := story.claim():
        story.start(microbatch)
        story.publish(microbatch, state, **error)


def counts(story: Story) -> list[int]:
    """How many rows a submission may leave."""
    tables = ("jobs", "images", "lanes", "batches", "uploads", "audit", "idempotency_keys", "image_days")
    return [story.count(table) for table in tables]


def test_a_job_over_the_limit_is_refused_and_fits_when_others_have_ended(story: Story, client: httpx.Client) -> None:
    limit(story, waiting_images=5)
    submitted(client, count=3)
    before = counts(story)
    answer = client.post("/v1/jobs", json=JOB | {"count": 3}, headers={"Idempotency-Key": "once"})
    assert reached(answer) == ("waiting_images", 3, 5)
    assert answer.headers["Retry-After"] == "10"
    assert counts(story) == before
    rendered(story)
    assert submitted(client, count=3)["tier"] == "standard"


def test_what_has_ended_counts_no_more_though_its_lane_says_so_later(story: Story, client: httpx.Client) -> None:
    """A lane that was written within the last second learns later what has ended."""
    limit(story, waiting_images=2)
    for _ in range(3):
        submitted(client, count=2)
        rendered(story)
    assert story.count("lane_changes")


def test_a_job_that_never_fits_is_told_no_time_to_come_back(story: Story, client: httpx.Client) -> None:
    limit(story, waiting_images=2)
    submitted(client)
    answer = client.post("/v1/jobs", json=JOB | {"count": 3})
    assert (reached(answer), answer.headers.get("Retry-After")) == (("waiting_images", 1, 2), None)


def test_the_same_request_under_a_key_counts_once(story: Story, client: httpx.Client) -> None:
    limit(story, images_a_day=2, waiting_images=2)
    answers = [client.post("/v1/jobs", json=JOB | {"count": 2}, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert reached(client.post("/v1/jobs", json=JOB))[:2] == ("waiting_images", 2)


def test_images_a_day_are_counted_when_they_come_and_anew_each_day(story: Story, client: httpx.Client) -> None:
    limit(story, images_a_day=4)
    submitted(client, count=3)
    rendered(story)
    answer = client.post("/v1/jobs", json=JOB | {"count": 2})
    assert reached(answer) == ("images_a_day", 3, 4)
    assert 0 < int(answer.headers["Retry-After"]) <= DAY_S
    submitted(client)
    story.rows("UPDATE image_days SET day = day - 1 RETURNING day")  # not committed: nothing changes
    assert reached(client.post("/v1/jobs", json=JOB))[1] == 4
    with story.database.begin() as connection:
        connection.exec_driver_sql("UPDATE image_days SET day = day - 1")
    submitted(client, count=4)
    assert reached(client.post("/v1/jobs", json=JOB)) == ("images_a_day", 4, 4)


def test_another_tenant_has_its_own(story: Story, api: Any, client: httpx.Client) -> None:
    limit(story, waiting_images=0)
    with api.client("somebody else") as other:
        submitted(other, count=4)
    assert reached(client.post("/v1/jobs", json=JOB)) == ("waiting_images", 0, 0)


@pytest.mark.parametrize("name", ["waiting_images", "images_a_day", "waiting_interactive"])
def test_a_retry_counts(story: Story, client: httpx.Client, name: str) -> None:
    job = submitted(client, count=3, tier="interactive")
    rendered(story, ImageState.FAILED)
    limit(story, **{name: 2})
    before = counts(story)
    assert reached(client.post(f"/v1/jobs/{job['id']}/retry"))[0] == name
    assert counts(story) == before
    limit(story, **{name: 3})
    assert client.post(f"/v1/jobs/{job['id']}/retry").status_code == 201
    assert images(story) == 3


def test_a_change_to_interactive_counts(story: Story, client: httpx.Client) -> None:
    job = submitted(client, count=3)
    limit(story, waiting_interactive=2, waiting_images=0)
    route = f"/v1/jobs/{job['id']}/tier"
    assert reached(client.post(route, json={"tier": "interactive"})) == ("waiting_interactive", 0, 2)
    assert story.lane_counts() == {"standard": 3}
    assert client.post(route, json={"tier": "bulk"}).status_code == 200
    limit(story, waiting_interactive=3)
    assert client.post(route, json={"tier": "interactive"}).status_code == 200
    assert images(story, "interactive") == 3


@pytest.mark.parametrize("name", ["waiting_images", "images_a_day", "waiting_interactive"])
def test_a_batch_over_the_limit_is_refused_whole(story: Story, client: httpx.Client, name: str) -> None:
    limit(story, **{name: 11})
    fields: dict[str, Any] = {"images_per_prompt": 2, "matrix": {"guidance": [3, 7]}, "tier": "interactive"}
    before = counts(story)
    answer = client.post("/v1/batches", json=BATCH | fields)
    assert reached(answer) == (name, 0, 11)
    assert counts(story) == before
    limit(story, **{name: 12})
    submitted(client, "/v1/batches", **fields)
    assert reached(client.post("/v1/jobs", json=JOB | {"tier": "interactive"})) == (name, 12, 12)


def test_a_batch_counts_from_its_submission_and_not_twice_when_it_is_expanded(
    farm: BatchStory, client: httpx.Client
) -> None:
    limit(farm, waiting_images=6, images_a_day=6)
    batch = submitted(client, "/v1/batches", images_per_prompt=2)
    for _ in range(2):
        assert reached(client.post("/v1/jobs", json=JOB)) == ("waiting_images", 6, 6)
        farm.expander.work(batch["id"], 60)
    assert images(farm) == 6
    rendered(farm)
    assert reached(client.post("/v1/jobs", json=JOB)) == ("images_a_day", 6, 6)


def test_a_cancelled_batch_gives_back_what_it_had_not_expanded(farm: BatchStory, client: httpx.Client) -> None:
    limit(farm, waiting_images=3, images_a_day=3)
    batch = submitted(client, "/v1/batches")
    assert client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 200
    submitted(client, count=3)


def upload(client: httpx.Client, *lines: str) -> str:
    data = "\n".join(lines).encode()
    answer = client.post("/v1/uploads", content=data, headers={"Content-Type": "application/jsonl"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize("name", ["waiting_images", "images_a_day"])
def test_a_file_is_counted_as_it_is_checked(farm: BatchStory, client: httpx.Client, name: str) -> None:
    """Its size is known only then: the check ends with `limit_reached`, before anything is rendered."""
    file = upload(client, '{"prompt": "红色的圆形", "count": 3}', '{"prompt": "绿色的三角形", "seeds": [1, 2]}')
    look = {"upload": file, "defaults": BATCH["defaults"]}
    limit(farm, **{name: 4})
    answer = client.post("/v1/batches", json=look)
    assert answer.status_code == 201
    farm.expander.work(answer.json()["id"], 60)
    refused = farm.batch(answer.json()["id"])
    assert (refused.state, refused.error_code, refused.counted) == ("ended", "limit_reached", 0)
    assert (images(farm), farm.count("image_days")) == (0, 0)
    limit(farm, **{name: 5})
    answer = client.post("/v1/batches", json=look)
    assert farm.expander.work(answer.json()["id"], 0)  # a chunk: the file is checked, nothing of it is expanded
    assert (farm.batch(answer.json()["id"]).counted, images(farm)) == (5, 0)
    assert reached(client.post("/v1/jobs", json=JOB)) == (name, 5, 5)
    farm.expander.work(answer.json()["id"], 60)
    assert images(farm) == 5
    assert reached(client.post("/v1/jobs", json=JOB)) == (name, 5, 5)


def test_a_retry_of_a_batch_counts_what_failed(farm: BatchStory, client: httpx.Client) -> None:
    batch = submitted(client, "/v1/batches", images_per_prompt=2)
    farm.expander.work(batch["id"], 60)
    rendered(farm, ImageState.FAILED)
    farm.end()
    limit(farm, images_a_day=5)
    before = counts(farm)
    assert reached(client.post(f"/v1/batches/{batch['id']}/retry-failed")) == ("images_a_day", 0, 5)
    assert counts(farm) == before
    limit(farm, images_a_day=6)
    retry = client.post(f"/v1/batches/{batch['id']}/retry-failed")
    assert retry.status_code == 201
    assert client.post(f"/v1/batches/{batch['id']}/retry-failed").json()["id"] == retry.json()["id"]
    assert reached(client.post("/v1/jobs", json=JOB))[1] == 6
    farm.expander.work(retry.json()["id"], 60)
    assert reached(client.post("/v1/jobs", json=JOB))[1] == 6


def test_batches_are_limited_until_they_are_expanded(farm: BatchStory, client: httpx.Client) -> None:
    limit(farm, preparing_batches=1)
    batch = submitted(client, "/v1/batches")
    before = counts(farm)
    assert reached(client.post("/v1/batches", json=BATCH)) == ("preparing_batches", 1, 1)
    assert counts(farm) == before
    farm.expander.work(batch["id"], 60)
    submitted(client, "/v1/batches")


def act(route: str, **body: Any) -> Callable[[httpx.Client, str], httpx.Response]:
    return lambda client, job: client.post(route.format(job=job), json=body)


@pytest.mark.parametrize(
    "forbidden",
    [
        act("/v1/jobs", **JOB, tier="interactive"),
        act("/v1/jobs?dry_run=true", **JOB, tier="interactive"),
        act("/v1/batches", **BATCH, tier="interactive"),
        act("/v1/batches?dry_run=true", **BATCH, tier="interactive"),
        act("/v1/jobs/{job}/tier", tier="interactive"),
        act("/v1/jobs/{job}/retry"),
    ],
)
def test_a_tier_that_the_tenant_may_not_use_is_refused_by_its_own_code(
    story: Story, client: httpx.Client, forbidden: Callable[[httpx.Client, str], httpx.Response]
) -> None:
    job = submitted(client, tier="interactive")["id"]
    client.post(f"/v1/jobs/{job}/cancel")
    allow_tiers(story, "standard", "bulk")
    before = counts(story)
    answer = forbidden(client, job)
    assert (answer.status_code, answer.json()["code"]) == (403, "tier_not_allowed")
    assert answer.json()["detail"] == "Your tenant may not use the tier interactive; it may use: standard, bulk."
    assert counts(story) == before
