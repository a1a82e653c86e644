"""A batch ends once: when its file is expanded and all its images have ended. The phases of two workers never mix."""

import pytest

from common.batches import chunks
from common.config import Settings
from common.db import transaction
from tests.support.batch_stories import PROMPTS, BatchStory
from tests.support.stories import Story
from worker.control import batch_expander


@pytest.fixture
def farm(story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> BatchStory:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 6)  # three prompts
    return BatchStory(story, settings)


def render_all(farm: BatchStory) -> None:
    while microbatch := farm.claim():
        farm.start(microbatch)
        farm.publish(microbatch)


def test_a_batch_does_not_end_before_its_expansion(farm: BatchStory) -> None:
    batch_id = farm.batch_of()
    assert farm.end() == []  # it has no images yet
    while not farm.batch(batch_id).jobs:
        farm.expander.work(batch_id, 1e-9)
    render_all(farm)
    assert (farm.end(), farm.batch(batch_id).finished_at) == ([], None)
    assert not farm.expander.work(batch_id, 60)
    render_all(farm)
    assert (farm.end(), farm.end()) == ([batch_id], [])
    assert len(farm.jobs_of(batch_id)) == len(PROMPTS)


def test_a_paused_batch_ends_when_its_last_running_image_ends(farm: BatchStory) -> None:
    batch_id = farm.expanded(PROMPTS[:2])
    last = farm.started()
    farm.pause(batch_id)
    assert farm.end() == []
    farm.publish(last)
    assert farm.end() == [batch_id]
    assert farm.batch(batch_id).state == "ended"


def test_two_checks_at_once_count_the_prompts_once(farm: BatchStory) -> None:
    """The slower check began where the expansion begins: at the start of the file."""
    batch_id = farm.batch_of()
    with transaction(farm.database) as connection:
        seen = chunks.read_batch(connection, batch_id)
    assert farm.expander.work(batch_id, 1e-9)  # the other one, faster: all of it in one chunk
    checked = farm.batch(batch_id)
    assert (checked.state, checked.prompts, checked.offset) == ("expanding", 10, 0)
    with farm.expander._chunks(seen) as found, transaction(farm.database) as connection:
        chunk, _ = next(found)
        assert not chunks.record_checked(connection, seen, chunk)
    assert farm.batch(batch_id) == checked
