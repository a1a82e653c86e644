"""Work on a batch that fails for an unforeseen reason is tried again some times, then ends with an error."""

import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from common.batches import failures as batch_failures
from common.batches import lifecycle as batches
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.errors import Unavailable
from common.failures import MAX_FAILURES
from common.storage import Storage
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import CATALOG, Story
from worker.control import batch_expander
from worker.control.batch_expander import Expander

REASON = "The farm failed for a reason that it does not foresee; its operator finds the cause by searching the log for"


@pytest.fixture
def farm(story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> BatchStory:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 6)  # three prompts
    return BatchStory(story, settings)


def change(farm: BatchStory, statement: str, **values: Any) -> None:
    with farm.database.begin() as connection:
        connection.execute(text(statement), values)


def poison_plan(farm: BatchStory, batch_id: UUID) -> None:
    """A plan that no code has written."""
    change(farm, "UPDATE batches SET plan = plan || '{\"seed\": [1]}' WHERE id = :id", id=batch_id)


def poison_jobs(farm: BatchStory, batch_id: UUID, line: int = 4) -> None:
    """Another job is where the batch has to put the one of this line."""
    job = farm.submit()
    farm.cancel(job)
    change(farm, "UPDATE jobs SET batch_id = :batch, position = :at WHERE id = :job", batch=batch_id, at=line, job=job)


def poison_lanes(farm: BatchStory, batch_id: UUID) -> None:
    """The counters of the lanes do not agree with their images."""
    change(farm, "UPDATE lanes SET open = 1 WHERE batch_id = :id", id=batch_id)


def skip_backoff(farm: BatchStory) -> None:
    change(farm, "UPDATE batches SET retry_at = now() WHERE retry_at IS NOT NULL")


def work(farm: BatchStory, batch_id: UUID, times: int = 1) -> None:
    for _ in range(times):
        assert not farm.expander.work(batch_id, 60)
        skip_backoff(farm)


def stalled(farm: BatchStory) -> list[UUID]:
    with transaction(farm.database) as connection:
        return batches.stalled(connection, silence_s=-1)


def test_a_batch_that_cannot_be_read_ends_with_a_reference(farm: BatchStory, caplog: pytest.LogCaptureFixture) -> None:
    batch_id = farm.batch_of()
    poison_plan(farm, batch_id)
    work(farm, batch_id, MAX_FAILURES - 1)
    batch = farm.batch(batch_id)
    assert (batch.state, batch.failures, batch.error_code) == ("checking", MAX_FAILURES - 1, None)
    work(farm, batch_id)
    batch = farm.batch(batch_id)
    assert (batch.state, batch.error_code) == ("ended", "internal_error")
    assert batch.error_message.startswith(REASON)
    reference = batch.error_message.removesuffix(".").split()[-1]
    (found,) = [one for one in caplog.records if reference in one.getMessage() and one.exc_info]
    assert f"batch={batch_id}" in found.getMessage()
    assert stalled(farm) == []


def test_a_batch_that_fails_is_left_alone_for_longer_each_time(
    farm: BatchStory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its messages, and another worker that fails at it as well, change nothing meanwhile."""
    batch_id = farm.batch_of()
    poison_plan(farm, batch_id)
    waits = list[float]()
    for _ in range(MAX_FAILURES - 1):
        farm.expander.work(batch_id, 60)
        seen = farm.batch(batch_id)
        waits.append(round((seen.retry_at - seen.touched_at).total_seconds()))
        assert stalled(farm) == []
        farm.expander.work(batch_id, 60)
        with transaction(farm.database) as connection:
            assert not batch_failures.count_failure(connection, batch_id, "of another worker")
        assert farm.batch(batch_id) == seen
        skip_backoff(farm)
        assert stalled(farm) == [batch_id]
    assert waits == [2, 4, 8, 16]
    assert len([one for one in caplog.records if one.exc_info]) == MAX_FAILURES - 1


@pytest.mark.parametrize("is_retry", [False, True], ids=["file", "retry"])
def test_a_success_begins_a_new_count(farm: BatchStory, is_retry: bool) -> None:
    batch_id = farm.batch_of() if not is_retry else retry_of_failed(farm)
    plan = json.dumps(farm.batch(batch_id).plan)
    for _ in range(2):
        poison_plan(farm, batch_id)
        work(farm, batch_id, MAX_FAILURES - 1)
        change(farm, "UPDATE batches SET plan = cast(:plan AS jsonb) WHERE id = :id", plan=plan, id=batch_id)
        farm.expander.work(batch_id, 1e-9)  # one chunk
        assert (farm.batch(batch_id).failures, farm.batch(batch_id).retry_at) == (0, None)
    work(farm, batch_id)
    assert farm.batch(batch_id).state == "running"


def retry_of_failed(farm: BatchStory) -> UUID:
    parent = farm.expanded(PROMPTS[:2])
    failed = {"error_code": "bad", "error_message": "It cannot be drawn.", "retryable": False}
    while microbatch := farm.claim():
        farm.start(microbatch)
        farm.publish(microbatch, state=ImageState.FAILED, **failed)
    assert farm.end() == [parent]
    return farm.retry(parent)


def test_a_batch_that_has_jobs_is_cancelled_and_settled(farm: BatchStory) -> None:
    batch_id = farm.batch_of()
    while farm.batch(batch_id).jobs < 3:
        farm.expander.work(batch_id, 1e-9)
    poison_jobs(farm, batch_id)
    work(farm, batch_id, MAX_FAILURES)
    batch = farm.batch(batch_id)
    assert (batch.error_code, batch.jobs, batch.cancelled_at is not None) == ("internal_error", 3, True)
    assert farm.claim() is None
    work(farm, batch_id)
    assert farm.end() == [batch_id]
    assert {job.state for job in farm.jobs_of(batch_id) if job.position < 3} == {"cancelled"}


def mend_lanes(farm: BatchStory, batch_id: UUID) -> None:
    change(farm, "UPDATE lanes SET open = 20 WHERE batch_id = :id", id=batch_id)


def test_a_cancelled_batch_that_cannot_be_settled_is_tried_again_until_it_can(
    farm: BatchStory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner sees the error meanwhile, and in the end no job of it is left."""
    batch_id = farm.expanded()
    farm.close(batch_id)
    poison_lanes(farm, batch_id)
    waits, errors = list[float](), list[str | None]()
    for _ in range(MAX_FAILURES + 2):
        assert not farm.expander.work(batch_id, 60)
        seen = farm.batch(batch_id)
        waits.append(round((seen.retry_at - seen.touched_at).total_seconds()))
        errors.append(seen.error_code)
        assert (seen.finished_at, stalled(farm)) == (None, [])
        skip_backoff(farm)
        assert stalled(farm) == [batch_id]
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    assert errors == [None] * 4 + ["internal_error"] * 3
    assert len([one for one in caplog.messages if one.startswith("batch_given_up")]) == 1
    assert f"reference={seen.error_message.removesuffix('.').split()[-1]}" in caplog.text
    assert {job.state for job in farm.jobs_of(batch_id)} == {"queued"}
    mend_lanes(farm, batch_id)
    work(farm, batch_id)
    assert {job.state for job in farm.jobs_of(batch_id)} == {"cancelled"}
    assert farm.end() == [batch_id]
    assert (farm.batch(batch_id).state, farm.batch(batch_id).failures) == ("ended", 0)


def test_a_settled_chunk_begins_a_new_count(farm: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = farm.expanded()
    farm.close(batch_id)
    poison_lanes(farm, batch_id)
    work(farm, batch_id, MAX_FAILURES - 1)
    mend_lanes(farm, batch_id)
    monkeypatch.setattr(batches, "SETTLE_IMAGES", 4)
    farm.expander.work(batch_id, 1e-9)
    assert (farm.batch(batch_id).settled, farm.batch(batch_id).failures) == (2, 0)


def test_an_outage_is_not_counted(farm: BatchStory, settings: Settings) -> None:
    batch_id = farm.batch_of()
    away = Storage(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}), attempts=1)
    expander = Expander(farm.database, away, Broker(settings), CATALOG)
    with pytest.raises(Unavailable):
        expander.work(batch_id, 60)
    assert (farm.batch(batch_id).failures, farm.batch(batch_id).retry_at) == (0, None)
