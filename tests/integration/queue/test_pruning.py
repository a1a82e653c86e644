"""Rows that nothing needs any more go, in small steps, and no other row does."""

import threading
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from common import failures
from common.accounts import audit, idempotency
from common.accounts.keys import Caller, create_key
from common.broker import Broker
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier, Via
from common.maintenance import pruning
from common.queue import quarantines, stats, workers
from common.queue.stats import HOUR
from common.queue.workers import Worker
from common.schema import metadata
from common.storage import Storage
from tests.support.ageing import age
from tests.support.batch_stories import BatchStory
from tests.support.stories import Clock, Story
from worker.control.sweep import Sweep

RULES = {rule.table: rule for rule in pruning.RULES}


def prune(story: Story, settings: Settings, table: str) -> int:
    with transaction(story.database) as connection:
        return pruning.step(connection, RULES[table], settings)


def change(story: Story, statement: str, **values: object) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement), values)


def leases(story: Story) -> set[UUID]:
    """By worker: their own ids move with the time."""
    return {row.worker_id for row in story.rows("SELECT worker_id FROM leases")}


def chart(story: Story) -> int:
    with transaction(story.database) as connection:
        return sum(point.stored for point in stats.read_chart(connection, HOUR))


# Leases


def test_a_lease_is_kept_for_its_days_and_goes_then(story: Story, settings: Settings) -> None:
    story.submit()
    microbatch = story.started()
    story.publish(microbatch)
    age(story.database, settings.lease_days - 0.1)
    assert prune(story, settings, "leases") == 0
    age(story.database, 0.2)
    assert prune(story, settings, "leases") == 1
    assert leases(story) == set()


def test_a_lease_is_kept_while_something_needs_it(story: Story, settings: Settings) -> None:
    story.submit(count=4)
    microbatches, holders = [], [new_id() for _ in range(4)]
    for story.worker_id in holders:
        microbatches.append(story.started(capacity=1))
    _, lost, ended, gone = microbatches
    story.die(lost)  # what it stored is deleted by the sweep, first
    change(
        story,
        "UPDATE leases SET ended_at = now(), outcome = 'released', needs_cleanup = false WHERE id = :id",
        id=ended.lease_id,
    )  # its image is running still: nobody has given it back
    story.publish(gone)
    age(story.database, 400)
    assert prune(story, settings, "leases") == 1
    assert leases(story) == set(holders[:3])


def test_what_is_pruned_takes_nothing_from_the_image(story: Story, settings: Settings) -> None:
    job = story.submit()
    story.publish(story.started())
    (before,) = story.images(job)
    age(story.database, 400)
    prune(story, settings, "leases")
    (after,) = story.images(job)
    assert (after.state, after.key, after.sha256) == (ImageState.STORED, before.key, before.sha256)


# Lanes of batches


@pytest.fixture
def batch_story(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


def ended_batch(story: BatchStory) -> UUID:
    batch_id = story.expanded(["红色的圆形"])
    story.publish(story.started())
    story.count_ended()
    change(story, "UPDATE batches SET finished_at = now() WHERE id = :id", id=batch_id)
    return batch_id


def delete_jobs(story: Story) -> None:
    change(story, "DELETE FROM images")
    change(story, "DELETE FROM jobs")


def test_lanes_of_an_ended_batch_count_for_it_while_it_has_jobs(batch_story: BatchStory, settings: Settings) -> None:
    ended_batch(batch_story)
    age(batch_story.database, 400)
    assert prune(batch_story, settings, "lanes") == 0
    delete_jobs(batch_story)
    assert prune(batch_story, settings, "lanes") == 1
    change(batch_story, "DELETE FROM batches")  # nothing refers to it any more


def test_what_pruned_lanes_counted_stays_in_charts(batch_story: BatchStory, settings: Settings) -> None:
    ended = [ended_batch(batch_story) for _ in range(2)]
    delete_jobs(batch_story)
    age(batch_story.database, 400)
    with transaction(batch_story.database) as connection:
        stats.take_sample(connection)
    change(batch_story, "UPDATE lane_samples SET minute = minute - interval '20 minutes'")
    before = chart(batch_story)
    assert prune(batch_story, settings, "lanes") == len(ended)
    assert chart(batch_story) == before
    batch_story.submit(count=3)
    batch_story.publish(batch_story.started())
    assert chart(batch_story) == before + 3
    (lane,) = batch_story.rows("SELECT * FROM lanes WHERE closed")
    assert (lane.tier, lane.model, lane.batch_id, lane.open, lane.stored) == (Tier.BULK, "mini-zh", None, 0, 4)
    ended_batch(batch_story)  # later ones are added up in the same lane
    change(batch_story, "DELETE FROM images WHERE lane_id IN (SELECT id FROM lanes WHERE batch_id IS NOT NULL)")
    change(batch_story, "DELETE FROM jobs WHERE batch_id IS NOT NULL")
    age(batch_story.database, 400)
    assert prune(batch_story, settings, "lanes") == 1
    assert [row.stored for row in batch_story.rows("SELECT stored FROM lanes WHERE closed")] == [6]


def test_a_lane_with_changes_that_it_has_not_counted_is_kept(batch_story: BatchStory, settings: Settings) -> None:
    ended_batch(batch_story)
    delete_jobs(batch_story)
    age(batch_story.database, 400)
    change(batch_story, "INSERT INTO lane_changes SELECT id, 0, 1, 0, 0, 0 FROM lanes WHERE batch_id IS NOT NULL")
    assert prune(batch_story, settings, "lanes") == 0
    batch_story.count_ended()
    assert prune(batch_story, settings, "lanes") == 1


# The other tables


def fill(story: Story) -> None:
    """A row of each table that is pruned by its age alone, as of now."""
    tenant = story.tenant()
    with transaction(story.database) as connection:
        key = create_key(connection, tenant, "a key", [Scope.JOBS_READ], "pepper")
        caller = Caller(tenant, key.id, frozenset(), Via.API)
        audit.record(connection, caller, audit.Action.SIGN_IN)
        idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("route", "key", "one"), new_id())
        failures.record(connection, "rescue", "", "a reference")
        stats.take_sample(connection)
        worker = Worker(new_id(), "gpu-1", {}, ["mini-zh"])
        workers.heartbeat(connection, worker, ready=True)
        workers.stop(connection, worker.id, "the day is over")
        quarantines.record_picture(connection, "a digest", "zh-v0", "gpu-1", b"a picture")


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ("idempotency_keys", timedelta(hours=24)),
        ("lane_samples", timedelta(days=8)),
        ("workers", timedelta(days=1)),
        ("audit", timedelta(days=365)),
        ("step_failures", timedelta(seconds=failures.FORGOTTEN_S)),
        ("trial_pictures", timedelta(days=30)),
    ],
)
def test_a_row_is_kept_for_its_time_and_goes_then(
    story: Story, settings: Settings, table: str, kept: timedelta
) -> None:
    story.submit()
    fill(story)
    margin = 0.05 * kept
    age(story.database, (kept - margin) / timedelta(days=1))
    assert prune(story, settings, table) == 0
    age(story.database, 2 * margin / timedelta(days=1))
    with transaction(story.database) as connection:
        assert pruning.count(connection, settings)[table] == 1
    assert prune(story, settings, table) == story.count(table) + 1 == 1


def test_trial_pictures_are_kept_while_a_worker_may_be_compared_with_them(story: Story, settings: Settings) -> None:
    fill(story)
    age(story.database, 400)
    with transaction(story.database) as connection:
        workers.heartbeat(connection, Worker(new_id(), "gpu-2", {}, ["zh-v0"]), ready=True)
    assert prune(story, settings, "trial_pictures") == 0
    change(story, "DELETE FROM workers")
    change(
        story,
        """INSERT INTO quarantines (name, code, reason, known_picture, retry_at)
                     VALUES ('gpu-3', 'differs', 'It differs.', 'a digest', now())""",
    )
    assert prune(story, settings, "trial_pictures") == 0
    change(story, "DELETE FROM quarantines")
    assert prune(story, settings, "trial_pictures") == 1


def test_a_step_is_bounded_and_takes_what_no_other_copy_has(story: Story, settings: Settings) -> None:
    change(
        story,
        """
        INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, made_id, created_at)
        SELECT :tenant, 'route', n::text, '', gen_random_uuid(), now() - interval '2 days' - interval '1 s' * n
        FROM generate_series(1, 2500) AS n""",
        tenant=story.tenant(),
    )
    with transaction(story.database) as first:
        assert pruning.step(first, RULES["idempotency_keys"], settings) == 1000
        steps = [prune(story, settings, "idempotency_keys") for _ in range(3)]  # the first has not committed
    assert steps == [1000, 500, 0]
    assert story.count("idempotency_keys") == 0


def test_every_rule_is_of_a_table_and_has_an_order(story: Story, settings: Settings) -> None:
    assert set(RULES) <= set(metadata.tables)
    with transaction(story.database) as connection:
        assert pruning.count(connection, settings) == dict.fromkeys(RULES, 0)


def test_the_sweep_prunes_once_a_minute_all_that_there_is(story: Story, settings: Settings, clock: Clock) -> None:
    sweep = Sweep(settings, story.database, Broker(settings), Storage(settings), clock)
    expired = """INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, made_id, created_at)
                 SELECT :tenant, 'route', n::text, '', gen_random_uuid(), now() - interval '2 days'
                 FROM generate_series(1, 2001) AS n"""
    for _ in range(2):
        change(story, expired, tenant=story.tenant())
        sweep.once()
        assert story.count("idempotency_keys") == 0
        change(story, expired, tenant=story.tenant())
        clock.now += 59
        sweep.once()
        assert story.count("idempotency_keys") == 2001
        change(story, "DELETE FROM idempotency_keys")
        clock.now += 2


def test_two_sweeps_prune_the_same_lanes_once(batch_story: BatchStory, settings: Settings) -> None:
    for _ in range(3):
        ended_batch(batch_story)
    delete_jobs(batch_story)
    age(batch_story.database, 400)
    pruned: list[int] = []
    with transaction(batch_story.database) as first:
        assert pruning.step(first, RULES["lanes"], settings) == 3
        other = threading.Thread(target=lambda: pruned.append(prune(batch_story, settings, "lanes")))
        other.start()
        other.join(20)
        assert pruned == [0]
    assert [row.stored for row in batch_story.rows("SELECT stored FROM lanes")] == [6]
