"""Control workers give tenants turns, however many batches one of them has, and end a turn while another one waits."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import text

from common.batches import lifecycle as batches
from common.config import Settings
from common.db import transaction
from tests.support.batch_stories import PLAN, BatchStory
from tests.support.stories import Story
from tests.support.workers import until
from worker.control import batch_turns, chunk_parts


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def blank_batch(farm: BatchStory, lines: int = 1, tenant: str = "somebody") -> UUID:
    upload, tenant_id = farm.upload(b"\n" * lines, tenant=tenant), farm.tenant(tenant)
    with transaction(farm.database) as connection:
        return batches.submit(connection, tenant_id, upload, PLAN)


def touch(farm: BatchStory, batch_id: UUID, seconds_ago: float) -> None:
    """As if a control worker had processed it then."""
    statement = """
        UPDATE batches SET created_at = now() - interval '1 hour', touched_at = now() - make_interval(secs => :ago)
        WHERE id = :batch
    """
    with transaction(farm.database) as connection:
        connection.execute(text(statement), {"batch": batch_id, "ago": seconds_ago})


def test_tenants_take_turns_however_many_batches_one_has(farm: BatchStory) -> None:
    first, second, third = (blank_batch(farm) for _ in range(3))
    other = blank_batch(farm, tenant="another")
    assert farm.expander.choose(first) == first
    assert farm.expander.choose(second) == other  # its tenant was never served
    assert farm.expander.choose(second) == second
    assert farm.expander.choose(second) == third  # the second one is touched, and so in hand
    assert farm.expander.choose(other) == other
    assert farm.expander.choose(other) == other  # a message for what is in hand changes nothing


def test_the_tenant_that_was_served_least_recently_is_next(farm: BatchStory) -> None:
    many, other = [blank_batch(farm) for _ in range(3)], blank_batch(farm, tenant="another")
    for place, batch_id in enumerate([other, *many]):
        touch(farm, batch_id, 50 - 10 * place)
    assert farm.expander.choose(many[0]) == other
    assert farm.expander.choose(many[1]) == many[0]


def test_a_message_for_what_is_done_serves_what_waits_or_nothing(farm: BatchStory) -> None:
    done = blank_batch(farm)
    farm.expander.work(done, 60)
    assert farm.expander.choose(done) is None
    waiting = blank_batch(farm)
    assert farm.expander.choose(done) == waiting


def test_a_turn_ends_early_while_another_tenant_waits(
    farm: BatchStory, aside: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_turns, "TURN_S", 0)
    monkeypatch.setattr(chunk_parts, "CHUNK_S", 0.05)
    long = blank_batch(farm, 40_000_000)
    work = aside.submit(farm.expander.work, long, 600)
    until(lambda: farm.batch(long).offset > 0)
    blank_batch(farm)  # of the same tenant
    assert not work.done()
    blank_batch(farm, tenant="another")
    assert work.result(60)
    assert 0 < farm.batch(long).offset < 40_000_000
