"""Jobs are submitted, cancelled, retried and settled; the database itself refuses what the code must never do."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from common.accounts import idempotency
from common.db import new_id, transaction
from common.enums import ImageState, JobState, Tier
from common.errors import Conflict, IdempotencyMismatch, NotFound
from common.queue import jobs
from tests.support.stories import Story


def test_a_submitted_job_waits_in_its_lane(story: Story) -> None:
    job = story.submit(count=3, tier=Tier.BULK)
    assert story.job(job).state == JobState.QUEUED
    assert story.job(job).open == 3
    assert [image.state for image in story.images(job)] == [ImageState.QUEUED] * 3
    assert story.lane_counts() == {"bulk": 3}


def test_a_cancelled_job_takes_its_images_along_once(story: Story) -> None:
    job = story.submit(count=3)
    with transaction(story.database) as connection:
        assert jobs.cancel(connection, job)
        assert not jobs.cancel(connection, job)
    assert story.job(job).state == JobState.CANCELLED
    assert {image.state for image in story.images(job)} == {ImageState.CANCELLED}
    assert story.lane_counts() == {"standard": 0}
    assert story.claim() is None


def test_a_tenant_cannot_touch_the_job_of_another(story: Story) -> None:
    job = story.submit(tenant="one")
    stranger = story.tenant("two")
    with transaction(story.database) as connection:
        for act in (jobs.cancel, jobs.retry):
            with pytest.raises(NotFound):
                act(connection, job, stranger)
    assert story.job(job).state == JobState.QUEUED


def test_a_retry_is_a_new_job_with_the_same_recipe(story: Story) -> None:
    job = story.submit(count=2, tier=Tier.BULK)
    tenant = story.tenant()
    with transaction(story.database) as connection, pytest.raises(Conflict, match="queued"):
        jobs.retry(connection, job, tenant)
    with transaction(story.database) as connection:
        jobs.cancel(connection, job)
        again = jobs.retry(connection, job, tenant)
    assert story.job(again.id).parent_id == job
    assert (story.job(again.id).recipe, story.job(again.id).tier) == (story.job(job).recipe, Tier.BULK)
    assert story.job(job).state == JobState.CANCELLED


def test_of_fifty_submissions_with_one_key_one_is_the_job(story: Story) -> None:
    tenant, once = story.tenant(), idempotency.IdempotencyKey("POST /v1/jobs", "key", "body")

    def submit(_: int) -> UUID:
        with transaction(story.database) as connection:
            job_id = new_id()
            earlier = idempotency.claim_key(connection, tenant, once, job_id)
            if earlier is None:
                jobs.submit(connection, tenant, story.recipe(), job_id=job_id)
            return earlier or job_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(50)))) == 1
    assert story.count("jobs") == 1


def test_a_key_belongs_to_one_body_for_a_day(story: Story) -> None:
    tenant, first, second = story.tenant(), new_id(), new_id()
    with transaction(story.database) as connection:
        assert (
            idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("route", "key", "one"), first) is None
        )
        assert (
            idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("route", "key", "one"), second)
            == first
        )
        assert (
            idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("other", "key", "two"), second) is None
        )
        with pytest.raises(IdempotencyMismatch):
            idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("route", "key", "two"), second)
        connection.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'"))
        assert (
            idempotency.claim_key(connection, tenant, idempotency.IdempotencyKey("route", "key", "two"), second) is None
        )


def test_what_a_key_made_is_found_again_for_a_day(story: Story) -> None:
    tenant, once, made = story.tenant(), idempotency.IdempotencyKey("route", "key", "one"), new_id()
    with transaction(story.database) as connection:
        assert idempotency.find_result(connection, tenant, once) is None
        assert idempotency.claim_key(connection, tenant, once, made) is None
        for strange in (replace(once, route="other"), replace(once, key="other")):
            assert idempotency.find_result(connection, tenant, strange) is None
        assert idempotency.find_result(connection, story.tenant("another"), once) is None
        with pytest.raises(IdempotencyMismatch):
            idempotency.find_result(connection, tenant, replace(once, fingerprint="two"))
        connection.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '23 hours'"))
        assert idempotency.find_result(connection, tenant, once) == made
        connection.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'"))
        assert idempotency.find_result(connection, tenant, once) is None


def test_a_job_that_is_not_done_by_its_deadline_fails_and_keeps_what_it_stored(story: Story) -> None:
    job, lasting, endless = (story.submit(count=3, expires_after_s=seconds) for seconds in (-1, 3600, None))
    started = story.started(capacity=2)
    story.publish(replace(started, images=started.images[:1]))  # the second goes back to the queue
    story.publish(story.started(capacity=1), state=ImageState.FAILED, error_code="out_of_memory", retryable=True)
    running = story.started(capacity=2)
    assert {image.job_id for image in running.images} == {job, lasting}
    assert story.expire() == [job]
    assert [(image.state, image.error_code, image.not_before) for image in story.images(job)] == [
        (ImageState.STORED, None, None),
        (ImageState.FAILED, "expired", None),
        (ImageState.FAILED, "expired", None),
    ]
    ended = story.job(job)
    assert (ended.state, ended.open, ended.failed, ended.error_code) == (JobState.FAILED, 0, 2, "expired")
    assert "deadline" in ended.error_message
    assert story.lane_counts() == {"standard": 6}
    assert len(story.renew(running)[running.lease_id]) == 1
    assert len(story.publish(running).images) == 1
    assert story.job(job).failed == 2
    assert story.expire() == []
    assert {story.job(other).state for other in (lasting, endless)} == {JobState.RUNNING, JobState.QUEUED}


def test_a_deadline_changes_nothing_that_has_ended(story: Story) -> None:
    done, cancelled = story.submit(expires_after_s=-1), story.submit(expires_after_s=-1)
    story.publish(story.started(capacity=1))
    story.cancel(cancelled)
    assert story.expire() == []
    assert [story.job(job).state for job in (done, cancelled)] == [JobState.SUCCEEDED, JobState.CANCELLED]


def test_an_expired_job_says_so_whatever_else_went_wrong(story: Story) -> None:
    job = story.submit(count=2, expires_after_s=-1)
    story.publish(story.started(capacity=1), state=ImageState.FAILED, error_code="prompt_too_long")
    story.expire()
    assert (story.job(job).error_code, story.job(job).failed) == ("expired", 2)


def test_jobs_that_have_ended_do_not_keep_others_from_their_deadline(story: Story) -> None:
    """A sweep takes a hundred jobs at once, those with the oldest deadlines first."""
    ended = [story.submit(expires_after_s=-60) for _ in range(100)]
    assert set(story.expire()) == set(ended)
    overdue = story.submit(expires_after_s=-1)
    assert story.expire() == [overdue]


def test_a_job_that_somebody_holds_expires_at_the_next_sweep(story: Story) -> None:
    held, other = story.submit(expires_after_s=-1), story.submit(expires_after_s=-1)
    with story.database.begin() as connection:
        connection.execute(text("SELECT id FROM jobs WHERE id = :j FOR NO KEY UPDATE"), {"j": held})
        assert story.expire() == [other]
    assert story.expire() == [held]


def test_a_retry_of_an_expired_job_has_no_deadline(story: Story) -> None:
    job = story.submit(expires_after_s=-1)
    story.expire()
    with transaction(story.database) as connection:
        again = jobs.retry(connection, job, story.tenant())
    assert story.expire() == []
    assert story.job(again.id).deadline is None


@pytest.mark.parametrize(
    "forbidden",
    [
        "UPDATE jobs SET state = 'succeeded'",
        "UPDATE jobs SET finished_at = now()",
        "UPDATE jobs SET open = open - 1",
        "UPDATE jobs SET open = count + 1",
        "UPDATE images SET state = 'running'",
        "UPDATE images SET state = 'stored', finished_at = now()",
        "UPDATE images SET state = 'flagged'",
        "UPDATE images SET key = 'k', sha256 = 's', bytes = 1",
        "UPDATE images SET index = 0",
        "UPDATE lanes SET open = -1",
        "UPDATE leases SET ended_at = now()",
    ],
)
def test_the_database_defends_the_states(story: Story, forbidden: str) -> None:
    story.submit(count=1)
    story.submit(count=2)
    story.claim(capacity=1)
    with pytest.raises(IntegrityError), story.database.begin() as connection:
        connection.execute(text(forbidden))


def test_migrations_go_down_and_up_again_and_agree_with_the_tables(database: Engine) -> None:
    from alembic import command

    from common.db import NEEDS, current_revision, migration_config, newest_revision, read_version

    def names(connection: Connection) -> set[str]:
        return set(connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars())

    with database.connect() as connection:
        before = names(connection)
        connection.rollback()
        command.downgrade(migration_config(connection), "base")
        assert names(connection) == {"alembic_version"}
        assert connection.execute(text("SELECT count(*) FROM pg_type WHERE typtype = 'e'")).scalar() == 0
        connection.rollback()
        command.upgrade(migration_config(connection), "head")
        assert names(connection) == before
        command.check(migration_config(connection))
        assert current_revision(connection) == newest_revision()
        revision, oldest_code = read_version(connection)
        assert (revision, oldest_code) == (int(newest_revision().removeprefix("r")), 1)
        assert revision >= NEEDS


def test_leases_of_before_are_found_after_the_migration(story: Story) -> None:
    """The release before found them by an index, and knew no column for them."""
    from alembic import command

    from api.dashboard.views.job import find_leases
    from common.db import migration_config

    job_id = story.submit()
    microbatches = [story.started()]
    story.release(microbatches[0])
    microbatches.append(story.started())
    story.die(microbatches[1])
    story.skip_backoff()
    microbatches.append(story.started())
    story.publish(microbatches[2])
    story.submit()
    story.publish(story.started())
    with story.database.connect() as connection:
        command.downgrade(migration_config(connection), "r0010")
        connection.rollback()
        command.upgrade(migration_config(connection), "head")
    with transaction(story.database) as connection:
        timeline = find_leases(connection, story.tenant(), job_id)
    assert [lease.id for lease in timeline] == [microbatch.lease_id for microbatch in microbatches]


def test_every_check_of_the_tables_is_in_the_database(database: Engine) -> None:
    """`alembic check` does not compare them."""
    from sqlalchemy import CheckConstraint

    from common.schema import metadata

    written = {str(c.name) for t in metadata.tables.values() for c in t.constraints if isinstance(c, CheckConstraint)}
    with database.connect() as connection:
        statement = text(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        )
        assert set(connection.execute(statement).scalars()) == written


def test_a_new_migration_reminds_of_the_rules(tmp_path, monkeypatch) -> None:
    import shutil

    from alembic import command

    from common import db

    folder = tmp_path / "migrations"
    shutil.copytree(db.MIGRATIONS, folder)
    monkeypatch.setattr(db, "MIGRATIONS", folder)
    command.revision(db.migration_config(), message="next", rev_id="r9999")
    assert "CONCURRENTLY" in next(folder.glob("versions/r9999_*.py")).read_text(encoding="utf-8")


def test_a_connection_that_was_cut_while_it_rested_is_replaced(database: Engine, monkeypatch) -> None:
    monkeypatch.setattr("common.db.IDLE_S", -1)
    with transaction(database) as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with psycopg.connect(database.url.set(drivername="postgresql").render_as_string(hide_password=False)) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
    with transaction(database) as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar() != backend
