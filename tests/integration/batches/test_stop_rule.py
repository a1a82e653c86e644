"""Batches that pause by themselves, and their throughput, from the counters of their lanes."""

import httpx
import pytest
from sqlalchemy import text

from common.batches import progress
from common.batches.throughput import StopRule
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.storage import Storage
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from worker.control.sweep import Sweep

PROMPTS = [f"红色的圆形 {n}" for n in range(60)]  # of two images each
RULE = StopRule(percent=25, of_last=20)


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def sweep(settings: Settings, farm: BatchStory) -> Sweep:
    return Sweep(settings, farm.database, Broker(settings), Storage(settings))


def render(farm: BatchStory, images: int, state: ImageState = ImageState.STORED) -> None:
    farm.publish(farm.started(capacity=images), state, error_code="nan_image" if state == ImageState.FAILED else None)


def test_a_batch_pauses_when_too_much_of_it_fails(farm: BatchStory, sweep: Sweep, client: httpx.Client) -> None:
    batch_id = farm.expanded(PROMPTS, stop_rule=RULE)
    for stored, failed, flagged in ((40, 0, 0), (17, 2, 1), (15, 4, 1)):  # a quarter is not more than a quarter
        render(farm, stored)
        render(farm, failed, ImageState.FAILED) if failed else None
        render(farm, flagged, ImageState.FLAGGED) if flagged else None
        sweep.once()
        assert farm.batch(batch_id).state == "running"
    render(farm, 2, ImageState.FAILED)
    held = farm.claim(capacity=2)
    sweep.once()
    found = client.get(f"/v1/batches/{batch_id}").json()
    assert (found["state"], found["stop_rule"]) == ("paused", {"percent": 25.0, "of_last": 20})
    assert found["paused_because"] == (
        "Of its last 22 images 6 failed and 1 were refused by the safety checker: more than the 25 % at which it was "
        "to stop."
    )
    assert farm.start(held) == frozenset()
    assert farm.claim() is None


def test_resume_forgets_earlier_failures(farm: BatchStory, sweep: Sweep, client: httpx.Client) -> None:
    batch_id = farm.expanded(PROMPTS, stop_rule=RULE)
    running = farm.started(capacity=8)
    render(farm, 20, ImageState.FAILED)
    sweep.once()
    assert farm.batch(batch_id).state == "paused"
    farm.publish(running, ImageState.FAILED, error_code="nan_image")  # it ran during the pause
    found = client.post(f"/v1/batches/{batch_id}/resume").json()
    assert (found["state"], found["paused_because"]) == ("running", None)
    for _ in range(3):
        sweep.once()
    render(farm, 14)
    render(farm, 5, ImageState.FAILED)
    sweep.once()
    assert farm.batch(batch_id).state == "running"
    render(farm, 5, ImageState.FAILED)
    sweep.once()
    assert farm.batch(batch_id).paused_because.startswith("Of its last 24 images 10 failed")


def test_a_sweep_that_was_overtaken_does_not_pause_what_was_resumed_since(farm: BatchStory, sweep: Sweep) -> None:
    batch_id = farm.expanded(PROMPTS, stop_rule=RULE)
    render(farm, 20, ImageState.FAILED)
    with transaction(farm.database) as connection:
        (counted,) = progress.count(connection)
    measured = progress.measure(counted)
    assert measured
    assert measured.stop_reason
    sweep.once()
    assert farm.batch(batch_id).state == "paused"
    farm.resume(batch_id)
    with transaction(farm.database) as connection:
        assert not progress.record(connection, measured)
    assert farm.batch(batch_id).state == "running"


def test_resuming_a_batch_that_is_not_paused_changes_nothing(farm: BatchStory, sweep: Sweep) -> None:
    """Its failures still count, so resuming it repeatedly does not delay its stop."""
    batch_id = farm.expanded(PROMPTS, stop_rule=RULE)
    render(farm, 14)
    sweep.once()
    render(farm, 6, ImageState.FAILED)
    farm.resume(batch_id)
    sweep.once()
    assert farm.batch(batch_id).paused_because.startswith("Of its last 20 images 6 failed")


def test_without_a_rule_nothing_pauses(farm: BatchStory, sweep: Sweep) -> None:
    batch_id = farm.expanded(PROMPTS)
    render(farm, 120, ImageState.FAILED)
    for step in (sweep.note_progress, sweep.note_progress):
        step()
    assert farm.batch(batch_id).paused_at is None


def test_a_pause_on_request_has_no_reason(farm: BatchStory, sweep: Sweep, client: httpx.Client) -> None:
    batch_id = farm.expanded(PROMPTS, stop_rule=RULE)
    render(farm, 40, ImageState.FAILED)
    farm.pause(batch_id)
    sweep.once()
    found = client.get(f"/v1/batches/{batch_id}").json()
    assert (found["state"], found["paused_because"]) == ("paused", None)


def test_a_retry_has_the_rule_of_its_parent(farm: BatchStory, sweep: Sweep) -> None:
    batch_id = farm.expanded(PROMPTS[:15], stop_rule=RULE)
    render(farm, 30, ImageState.FAILED)
    farm.end()
    retry_id = farm.retry(batch_id)
    farm.expander.work(retry_id, 60)
    render(farm, 20, ImageState.FAILED)
    sweep.once()
    assert farm.batch(retry_id).state == "paused"


def test_the_rate_is_that_of_the_last_minute(farm: BatchStory, sweep: Sweep, client: httpx.Client) -> None:
    batch_id = farm.expanded(PROMPTS)

    def shown() -> tuple[float | None, float | None]:
        found = client.get(f"/v1/batches/{batch_id}").json()
        return found["images_per_minute"], found["eta_seconds"]

    def later(seconds: float) -> None:
        shifted = """SELECT jsonb_agg(jsonb_set(mark, '{0}', to_jsonb((mark -> 0)::float - :s)) ORDER BY place)
                     FROM jsonb_array_elements(progress_samples) WITH ORDINALITY AS mark(mark, place)"""
        with farm.database.begin() as connection:
            connection.execute(text(f"UPDATE batches SET progress_samples = ({shifted})"), {"s": seconds})
        sweep.note_progress()

    sweep.note_progress()
    assert shown() == (None, None)
    render(farm, 10)
    later(30)
    assert shown()[0] == pytest.approx(20, rel=0.1)
    render(farm, 40)
    later(30)
    later(60)
    later(60)
    assert shown() == (0.0, None)
    render(farm, 35)
    later(60)
    rate, eta = shown()
    assert rate == pytest.approx(35, rel=0.1)
    assert eta == pytest.approx(60, rel=0.1)
    farm.pause(batch_id)
    assert shown() == (None, None)


@pytest.mark.parametrize("rule", [{"percent": 100, "of_last": 50}, {"percent": 20, "of_last": 0}, {"percent": 20}, 20])
def test_a_wrong_rule_is_refused(client: httpx.Client, rule: object) -> None:
    answer = client.post("/v1/batches", json={"prompts": ["红色的圆形"], "stop_rule": rule})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("stop_rule")


def test_the_rule_is_shown_with_the_batch(client: httpx.Client) -> None:
    rule = {"percent": 20, "of_last": 50}
    made = client.post("/v1/batches", json={"prompts": ["红色的圆形"], "stop_rule": rule}).json()
    assert client.get(f"/v1/batches/{made['id']}").json()["stop_rule"] == rule
