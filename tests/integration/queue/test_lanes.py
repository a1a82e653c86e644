"""Counting what ends: exact at any time, and without waiting for the row of a lane or writing it at every publish."""

from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import Engine, create_engine, text

from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.queue import lanes, stats
from common.queue.lanes import EXACT
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

COUNTS = "SELECT open, stored, failed, cancelled FROM {} AS lanes"


@pytest.fixture
def impatient(database: Engine) -> Iterator[Story]:
    """A story that fails as soon as it waits for a lock."""
    engine = create_engine(database.url, connect_args={"options": "-c lock_timeout=1"})
    yield Story(engine)
    engine.dispose()


def counted(story: Story) -> tuple[int, ...]:
    """What the row of the only lane says."""
    return tuple(story.rows(COUNTS.format("lanes"))[0])


def exact(story: Story) -> tuple[int, ...]:
    return tuple(story.rows(COUNTS.format(EXACT))[0])


def a_second_later(story: Story) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE lanes SET counted_at = counted_at - interval '1.1 s'"))


def test_a_busy_lane_is_written_once_a_second_and_its_counters_are_exact(story: Story) -> None:
    story.submit(count=8)
    story.publish(story.started(capacity=1))
    assert counted(story) == exact(story) == (7, 1, 0, 0)
    story.publish(story.started(capacity=2), ImageState.FAILED, error_code="prompt_too_long", error_message="No.")
    story.publish(story.started(capacity=1))
    assert counted(story) == (7, 1, 0, 0)
    assert exact(story) == (4, 2, 2, 0)
    a_second_later(story)
    story.publish(story.started(capacity=1))
    assert counted(story) == (6, 2, 0, 0)
    assert exact(story) == (3, 3, 2, 0)
    story.count_ended()
    assert counted(story) == exact(story) == (3, 3, 2, 0)
    assert story.count("lane_changes") == 0
    assert story.balances()


def test_what_ends_waits_for_no_lane(story: Story, impatient: Story) -> None:
    job, other = story.submit(count=2), story.submit(count=1)
    with story.database.begin() as connection:
        connection.execute(text("SELECT FROM lanes FOR UPDATE"))
        assert impatient.publish(impatient.started(capacity=2)).ended_jobs == (job,)
        assert impatient.cancel(other)
        impatient.count_ended()
        assert counted(story) == (3, 0, 0, 0)
        assert exact(story) == (0, 2, 0, 1)
    story.count_ended()
    assert counted(story) == (0, 2, 0, 1)


def test_a_publish_that_is_rolled_back_counts_nothing(story: Story) -> None:
    story.submit(count=2)
    story.publish(story.started(capacity=1))
    microbatch = story.started(capacity=1)
    with story.database.connect() as connection, connection.begin() as gone:
        lanes.count(connection)
        Story.publish(story, microbatch)
        gone.rollback()
    with pytest.raises(RuntimeError), transaction(story.database) as connection:
        lanes.count(connection)
        raise RuntimeError  # dies before its COMMIT
    assert counted(story) == (1, 1, 0, 0)
    assert exact(story) == (0, 2, 0, 0)


def test_two_sweeps_count_a_change_once(story: Story) -> None:
    story.submit(count=3)
    for _ in range(3):
        story.publish(story.started(capacity=1))
    with story.database.begin() as first:
        lanes.count(first)
        with story.database.begin() as second:
            lanes.count(second)
    assert counted(story) == exact(story) == (0, 3, 0, 0)


def test_a_batch_shows_at_once_what_has_ended_and_ends_when_it_is_counted(
    story: Story, settings: Settings, client: httpx.Client
) -> None:
    farm = BatchStory(story, settings)
    batch_id = farm.expanded()  # 20 images
    for _ in range(3):
        farm.publish(farm.started())
    assert counted(farm)[0] > 0
    shown = client.get(f"/v1/batches/{batch_id}").json()["images"]
    assert (shown["open"], shown["stored"]) == (0, 20)
    with transaction(farm.database) as connection:
        tally = stats.read_tallies(connection)
        (backlog,) = stats.read_backlog(connection)
    assert [one.stored for one in tally] == [20]
    assert backlog.waiting == 0
    assert farm.end() == [batch_id]
    assert counted(farm)[:2] == (0, 20)
