"""A year in fast motion: the farm works every day, its tenants delete what is old, and its tables stay as they are."""

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
from common.queue import workers
from common.queue.workers import Worker
from common.schema import metadata
from common.storage import Storage
from tests.support.ageing import DAY_S, age
from tests.support.batch_stories import BatchStory
from tests.support.stories import Clock, Story
from worker.control.sweep import Sweep

WEEK = 7
OWN_DAYS = 10  # how long the tenants keep what is theirs
SETTINGS = {"lease_days": 9, "audit_days": 30, "upload_days": 5}

# What a tenant's retention deletes.
DELETE_OWN = (
    f"DELETE FROM images USING jobs WHERE jobs.id = job_id AND jobs.finished_at < now() - interval '{OWN_DAYS} days'",
    f"DELETE FROM jobs WHERE finished_at < now() - interval '{OWN_DAYS} days'",
    "DELETE FROM batches WHERE finished_at IS NOT NULL AND NOT EXISTS (SELECT FROM lanes WHERE batch_id = batches.id)",
)


class Year:
    def __init__(self, story: Story, settings: Settings) -> None:
        own = settings.model_copy(update=SETTINGS)
        self.story = BatchStory(story, own)
        self.clock = Clock()
        self.sweep = Sweep(own, story.database, Broker(own), Storage(own), self.clock)
        with transaction(story.database) as connection:
            key = create_key(connection, story.tenant(), "a key", [Scope.JOBS_READ], "pepper")
        self.caller = Caller(story.tenant(), key.id, frozenset(), Via.API)

    def day(self, number: int) -> None:
        story = self.story
        story.submit(tier=Tier.INTERACTIVE)
        story.submit(count=2)
        batch = story.expanded(["红色的圆形", "蓝色的方形"])
        story.worker_id = self._worker()
        self._lose_one()
        while microbatch := story.claim():
            story.start(microbatch)
            story.publish(microbatch)
        self._note(number, batch)
        self.sweep.once()
        self.sweep.clean()
        with story.database.begin() as connection:
            for statement in DELETE_OWN:
                connection.execute(text(statement))
        age(story.database, 1)
        self.clock.now += DAY_S

    def _worker(self) -> UUID:
        worker = Worker(new_id(), "gpu-1", {}, ["mini-zh"])
        with transaction(self.story.database) as connection:
            workers.heartbeat(connection, worker, ready=True)
            workers.stop(connection, worker.id, "the day is over")
        return worker.id

    def _lose_one(self) -> None:
        self.story.die(self.story.started(capacity=1))
        self.story.skip_backoff()
        self.story.publish(self.story.started(capacity=1), ImageState.FAILED, error_code="bad", error_message="Bad.")

    def _note(self, number: int, batch: object) -> None:
        key = idempotency.IdempotencyKey("route", f"key {number}", "one")
        with transaction(self.story.database) as connection:
            idempotency.claim_key(connection, self.caller.tenant_id, key, new_id())
            audit.record(connection, self.caller, audit.Action.SIGN_IN)
            failures.record(connection, "advance", str(batch), "a reference")

    def rows(self) -> dict[str, int]:
        return {table: self.story.count(table) for table in metadata.tables}

    def bytes(self) -> int:
        """Of all tables and their indexes, after the VACUUM that Postgres does by itself."""
        with self.story.database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM"))
            tables = ", ".join(f"('{table}')" for table in metadata.tables)
            return int(
                connection.execute(
                    text(f"SELECT sum(pg_total_relation_size(name::regclass)) FROM (VALUES {tables}) AS t(name)")
                ).scalar_one()
            )


@pytest.fixture
def year(story: Story, settings: Settings) -> Year:
    return Year(story, settings)


@pytest.mark.parametrize("weeks", [8, pytest.param(52, marks=pytest.mark.long)])
def test_the_tables_of_a_farm_that_works_every_day_stay_as_they_are(year: Year, weeks: int) -> None:
    counted, sizes = {}, {}
    for day in range(1, weeks * WEEK + 1):
        year.day(day)
        if day % WEEK == 0:
            counted[day // WEEK], sizes[day // WEEK] = year.rows(), year.bytes()
    settled = 6  # weeks: 30 days of audit, 10 of jobs and then 9 of leases
    assert {week: counted[settled] for week in counted if week >= settled} == {
        week: rows for week, rows in counted.items() if week >= settled
    }
    assert max(sizes.values()) < 1.15 * sizes[settled]
