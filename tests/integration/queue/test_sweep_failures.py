"""A row at which a step of the sweep fails does not stop the other rows, and what keeps failing is counted."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from sqlalchemy import Row, text

from common import failures, uploads
from common.broker import Broker
from common.config import Settings
from common.db import new_id, transaction
from common.enums import JobState
from common.failures import MAX_FAILURES
from common.storage import Storage
from common.uploads import Upload
from tests.support.batch_stories import BatchStory
from tests.support.stories import Clock, Story
from worker.control.sweep import Sweep


class Picky(Storage):
    """A store whose client fails at one key, for a reason that nobody foresees."""

    bad = "?"

    def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        if any(self.bad in key for key in keys):
            raise ValueError(self.bad)
        super().delete(keys)


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def store(settings: Settings) -> Picky:
    store = Picky(settings)
    store.ensure_bucket()
    return store


@pytest.fixture
def sweep(settings: Settings, story: Story, clock: Clock, store: Picky) -> Sweep:
    return Sweep(settings.model_copy(update={"lease_s": 0}), story.database, Broker(settings), store, clock)


def change(story: Story, statement: str, **values: Any) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement), values)


def counted(story: Story) -> list[tuple[str, str, int]]:
    rows = story.rows("SELECT step, subject, failures FROM step_failures ORDER BY step, subject")
    return [(row.step, row.subject, row.failures) for row in rows]


def lasting(story: Story) -> Sequence[Row[Any]]:
    with transaction(story.database) as connection:
        return failures.lasting(connection)


def skip_backoff(story: Story) -> None:
    change(story, "UPDATE step_failures SET retry_at = now()")


def poison(story: Story, tenant: str) -> None:
    """The counters of the tenant's lanes do not agree with their images: no image of them can end."""
    change(story, "UPDATE lanes SET open = 0 WHERE tenant_id = :tenant", tenant=story.tenant(tenant))


def test_a_lease_that_cannot_be_rescued_keeps_no_other_from_it(
    story: Story, sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, *others = (story.submit(tenant=tenant) for tenant in ("poisoned", "second", "third"))
    started = [story.started(capacity=1) for _ in range(3)]
    bad = next(str(one.lease_id) for one in started if one.images[0].job_id == poisoned)
    change(story, "UPDATE images SET attempts = 3")
    change(story, "UPDATE leases SET expires_at = now() - interval '1 s'")
    poison(story, "poisoned")
    for failure in range(1, MAX_FAILURES + 1):
        sweep.rescue()
        assert [story.job(job).state for job in (poisoned, *others)] == [JobState.RUNNING, *2 * [JobState.FAILED]]
        assert counted(story) == [("rescue", bad, failure)]
        lines = len([one for one in caplog.records if one.exc_info])
        sweep.rescue()  # in its back-off
        assert len([one for one in caplog.records if one.exc_info]) == lines == failure
        assert len(lasting(story)) == (failure == MAX_FAILURES)
        skip_backoff(story)
    assert lasting(story)[0].reference in caplog.text
    change(story, "UPDATE lanes SET open = 1 WHERE tenant_id = :tenant", tenant=story.tenant("poisoned"))
    sweep.rescue()
    assert (story.job(poisoned).state, counted(story)) == (JobState.FAILED, [])


def test_a_job_that_cannot_expire_keeps_no_other_from_it(story: Story, sweep: Sweep) -> None:
    poisoned, other = (story.submit(tenant=tenant, expires_after_s=-1) for tenant in ("poisoned", "other"))
    poison(story, "poisoned")
    sweep.once()
    assert [story.job(job).state for job in (poisoned, other)] == [JobState.QUEUED, JobState.FAILED]
    assert counted(story) == [("expire", str(poisoned), 1)]


def test_a_batch_whose_progress_cannot_be_read_keeps_no_other_from_it(farm: BatchStory, sweep: Sweep) -> None:
    poisoned, other = farm.expanded(), farm.expanded()
    change(farm, """UPDATE batches SET progress_samples = '[["?"]]' WHERE id = :id""", id=poisoned)
    farm.publish(farm.started())
    farm.publish(farm.started(capacity=100))
    sweep.once()
    assert len(farm.batch(other).progress_samples) > 0
    assert counted(farm) == [("note_progress", str(poisoned), 1)]


def test_an_upload_that_cannot_be_deleted_keeps_no_other_from_it(story: Story, sweep: Sweep, store: Picky) -> None:
    files = [Upload(new_id(), "txt", 1, "0") for _ in range(3)]
    store.bad = str(files[1].id)
    with transaction(story.database) as connection:
        for file in files:
            uploads.record(connection, story.tenant(), file)
    change(story, "UPDATE uploads SET used_at = now() - interval '1 year'")
    sweep.clean()
    assert [row.id for row in story.rows("SELECT id FROM uploads")] == [files[1].id]
    assert counted(story) == [("delete_uploads", str(files[1].id), 1)]


def test_leftovers_that_cannot_be_deleted_keep_no_others(story: Story, sweep: Sweep, store: Picky) -> None:
    story.submit(count=2)
    first, second = (story.started(capacity=1) for _ in range(2))
    for one in (first, second):
        story.die(one)
    bad, store.bad = first.lease_id, str(first.lease_id)
    change(story, "UPDATE leases SET ended_at = now() - interval '1 hour'")
    sweep.clean()
    assert [row.id for row in story.rows("SELECT id FROM leases WHERE needs_cleanup")] == [bad]
    assert story.leftovers() == {}  # in its back-off
    assert counted(story) == [("delete_leftovers", str(bad), 1)]


def test_a_step_that_fails_as_a_whole_rests_and_is_counted(
    story: Story, sweep: Sweep, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    change(story, "ALTER TABLE idempotency_keys RENAME TO elsewhere")
    for failure in range(1, MAX_FAILURES + 1):
        sweep.once()
        assert counted(story) == [("delete_expired", "", failure)]
        sweep.once()  # in its back-off
        assert len([one for one in caplog.records if one.exc_info]) == failure
        clock.now += 2.0**failure
        skip_backoff(story)
    (found,) = lasting(story)
    assert found.reference in caplog.text
    change(story, "ALTER TABLE elsewhere RENAME TO idempotency_keys")
    sweep.once()
    assert counted(story) == []


def test_what_several_control_workers_fail_at_is_counted_once(
    story: Story, settings: Settings, clock: Clock, store: Picky
) -> None:
    """Else a farm with five of them alerts after seconds."""
    change(story, "ALTER TABLE idempotency_keys RENAME TO elsewhere")
    for _ in range(MAX_FAILURES):
        Sweep(settings, story.database, Broker(settings), store, clock).once()
    assert counted(story) == [("delete_expired", "", 1)]
    assert lasting(story) == []


def test_a_failure_after_a_long_time_begins_a_new_count(story: Story) -> None:
    for days in (0, 0, 1):
        change(story, "UPDATE step_failures SET retry_at = now(), failed_at = now() - interval '1 day' * :d", d=days)
        with transaction(story.database) as connection:
            failures.record(connection, "rescue", "", "a reference")
    assert counted(story) == [("rescue", "", 1)]
