"""A batch of which control workers die is tried again some times, then ends with an error. One that comes further goes
on, however many of them die.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from common.batches import failures as batch_failures
from common.batches import lifecycle as batches
from common.batches.chunks import Chunk, read_batch, record_checked
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.errors import Unavailable
from common.failures import MAX_FAILURES
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import Story
from tests.support.workers import locked, log_of, nobody_let_in, running, terminate_connections, until
from worker.control import batch_expander

ONE_CHUNK = 1e-9


@pytest.fixture
def farm(story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> BatchStory:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 6)  # three prompts
    monkeypatch.setattr(batch_expander, "CHECK_PROMPTS", 3)
    monkeypatch.setattr("common.batches.retries.CHUNK_IMAGES", 6)
    monkeypatch.setattr("common.batches.lifecycle.SETTLE_IMAGES", 6)
    return BatchStory(story, settings)


def pass_silence(farm: BatchStory) -> None:
    """Until no process that is alive can be at work on any batch."""
    with farm.database.begin() as connection:
        connection.execute(
            text("UPDATE batches SET touched_at = touched_at - make_interval(secs => :s)"), {"s": batches.SILENT_S}
        )


def lose_workers(farm: BatchStory, batch_id: UUID, times: int = MAX_FAILURES) -> None:
    """Control workers begin with the batch, and say nothing any more."""
    for _ in range(times):
        assert farm.expander.choose(batch_id) == batch_id


def until_begun(farm: BatchStory, batch_id: UUID, turns: int) -> None:
    until(lambda: farm.batch(batch_id).open_turns == turns)


def stalled(farm: BatchStory) -> list[UUID]:
    with transaction(farm.database) as connection:
        return batches.stalled(connection, silence_s=-1)


def test_a_batch_that_kills_its_workers_ends_with_a_reference(
    farm: BatchStory, settings: Settings, tmp_path: Path
) -> None:
    batch_id = farm.batch_of()
    for deaths in range(1, MAX_FAILURES + 1):
        Broker(settings).advance(batch_id)
        with locked(farm, "uploads"), running(tmp_path, settings, "control", SWEEP="false"):
            until_begun(farm, batch_id, deaths)  # then it is killed
    pass_silence(farm)
    Broker(settings).advance(batch_id)
    with running(tmp_path, settings, "control", SWEEP="false") as process:
        batch = until(lambda: (found := farm.batch(batch_id)).finished_at and found)
        assert process.poll() is None
    assert (batch.state, batch.error_code) == ("ended", "internal_error")
    reference = batch.error_message.removesuffix(".").split()[-1]
    assert f"batch_lost_workers batch={batch_id} workers={MAX_FAILURES} reference={reference}" in log_of(process)
    assert stalled(farm) == []


def test_no_turn_begins_while_one_of_many_may_still_be_at_work(farm: BatchStory) -> None:
    batch_id = farm.batch_of()
    lose_workers(farm, batch_id)
    assert farm.expander.choose(batch_id) is None
    assert stalled(farm) == []
    pass_silence(farm)
    assert stalled(farm) == [batch_id]


def test_the_turn_after_some_dead_workers_may_succeed(farm: BatchStory) -> None:
    batch_id = farm.batch_of()
    lose_workers(farm, batch_id, MAX_FAILURES - 1)
    assert farm.expander.choose(batch_id) == batch_id
    assert not farm.expander.work(batch_id, 60)
    assert (farm.batch(batch_id).state, farm.batch(batch_id).open_turns) == ("running", 0)


def test_a_turn_that_ends_without_success_has_not_died(farm: BatchStory) -> None:
    """It fails for an unforeseen reason: that is counted as such."""
    batch_id = farm.batch_of()
    lose_workers(farm, batch_id, 2)
    with farm.database.begin() as connection:
        connection.exec_driver_sql("UPDATE batches SET plan = plan || '{\"seed\": [1]}'")
    farm.expander.work(batch_id, 60)
    assert (farm.batch(batch_id).open_turns, farm.batch(batch_id).failures) == (0, 1)


def in_check(farm: BatchStory) -> UUID:
    return farm.batch_of()


def in_expansion(farm: BatchStory) -> UUID:
    batch_id = farm.batch_of()
    while farm.batch(batch_id).checked_at is None:
        farm.expander.work(batch_id, ONE_CHUNK)
    return batch_id


def in_retry(farm: BatchStory) -> UUID:
    parent = farm.expanded(PROMPTS)
    while microbatch := farm.claim():
        farm.start(microbatch)
        failed = {"error_code": "bad", "error_message": "It cannot be drawn.", "retryable": False}
        farm.publish(microbatch, state=ImageState.FAILED, **failed)
    farm.end()
    return farm.retry(parent)


def in_settlement(farm: BatchStory) -> UUID:
    batch_id = farm.expanded()
    farm.close(batch_id)
    return batch_id


@pytest.mark.parametrize("begun", [in_check, in_expansion, in_retry, in_settlement])
def test_a_batch_that_comes_further_is_never_given_up(farm: BatchStory, begun: Callable[[BatchStory], UUID]) -> None:
    """Each worker dies after a chunk, and four more before the next one."""
    batch_id = begun(farm)
    for _ in range(3):
        lose_workers(farm, batch_id, MAX_FAILURES - 1)
        assert farm.expander._step(batch_id, lambda: True)
        assert farm.batch(batch_id).open_turns == 1
    farm.expander.work(batch_id, 60)
    farm.end()
    assert (farm.batch(batch_id).open_turns, farm.batch(batch_id).error_code) == (0, None)
    assert farm.batch(batch_id).state in ("running", "ended")


def test_a_chunk_without_a_line_is_no_progress(farm: BatchStory) -> None:
    """It shows that work goes on; then the process dies, or fails, in the same place again."""
    batch_id = farm.batch_of()
    lose_workers(farm, batch_id, 2)
    with transaction(farm.database) as connection:
        batch_failures.count_failure(connection, batch_id, "a reference", 0)
    with transaction(farm.database) as connection:
        batch = read_batch(connection, batch_id)
        assert batch
        assert record_checked(connection, batch, Chunk(0, 0, is_last=False, prompts=0))
    assert (farm.batch(batch_id).open_turns, farm.batch(batch_id).failures) == (2, 1)


def test_a_batch_that_has_jobs_is_cancelled_and_settled(farm: BatchStory) -> None:
    batch_id = in_expansion(farm)
    farm.expander.work(batch_id, ONE_CHUNK)
    assert farm.batch(batch_id).jobs == 3
    lose_workers(farm, batch_id)
    pass_silence(farm)
    assert farm.expander.choose(batch_id) == batch_id
    assert farm.claim() is None
    assert not farm.expander.work(batch_id, 60)
    assert farm.end() == [batch_id]
    assert {job.state for job in farm.jobs_of(batch_id)} == {"cancelled"}
    assert farm.batch(batch_id).error_code == "internal_error"


def test_a_cancelled_batch_is_settled_though_workers_died(farm: BatchStory) -> None:
    batch_id = in_settlement(farm)
    for _ in range(2):
        lose_workers(farm, batch_id)
        pass_silence(farm)
        assert farm.expander.choose(batch_id) == batch_id
        assert not farm.expander.work(batch_id, 60)  # it rests
        batch = farm.batch(batch_id)
        assert (batch.error_code, batch.finished_at, batch.settled) == ("internal_error", None, 0)
        with farm.database.begin() as connection:
            connection.exec_driver_sql("UPDATE batches SET retry_at = now()")
    farm.expander.work(batch_id, 60)
    assert farm.end() == [batch_id]
    assert {job.state for job in farm.jobs_of(batch_id)} == {"cancelled"}


def test_a_turn_during_which_postgres_went_away_has_ended(
    farm: BatchStory, settings: Settings, aside: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """However often: an outage is no death."""
    batch_id = farm.batch_of()
    assert farm.expander.choose(batch_id) == batch_id
    with nobody_let_in(settings):
        terminate_connections(settings)
        work = aside.submit(farm.expander.work, batch_id, 60)
        until(lambda: "database_away" in caplog.text)
    with pytest.raises(Unavailable):
        work.result(60)
    assert farm.batch(batch_id).open_turns == 0
