"""Two releases on one database: which code works with which tables, and what code does with work that is newer."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy import Engine

from common.batches.chunks import read_batch
from common.batches.lifecycle import stalled
from common.broker import Broker
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.dataset import Step
from common.datasets.layout import DatasetPlan
from common.db import CODE, NEEDS, check_version, migrate, newest_revision, read_version, transaction
from common.enums import Tier
from common.errors import Invalid, Unavailable
from common.queue import bulk
from common.queue.search import JobFilter
from common.schema import metadata
from tests.support.batch_stories import BatchStory
from tests.support.future import make_batch_newer, make_dataset_newer, make_job_newer
from tests.support.serving import PROMPT
from tests.support.stories import Story
from worker import tasks
from worker.control.sweep import Sweep


@pytest.fixture
def url(settings: Settings) -> str:
    return settings.database_url.get_secret_value()


def say(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def why_refused(database: Engine) -> str:
    with pytest.raises(Unavailable) as raised, transaction(database) as connection:
        check_version(read_version(connection))
    return str(raised.value)


def test_a_database_says_which_code_works_with_it(database: Engine, url: str) -> None:
    with transaction(database) as connection:
        check_version(read_version(connection))
    say(url, f"UPDATE schema_version SET revision = {NEEDS + 7}, oldest_code = {CODE}")
    with transaction(database) as connection:
        check_version(read_version(connection))

    say(url, f"UPDATE schema_version SET oldest_code = {CODE + 1}")
    assert "newer" in why_refused(database)
    say(url, f"UPDATE schema_version SET revision = {NEEDS - 1}, oldest_code = {CODE}")
    assert "admin migrate" in why_refused(database)
    say(url, "DROP TABLE schema_version")  # as a database of the first migration
    assert "admin migrate" in why_refused(database)
    say(url, "DROP TABLE alembic_version")
    assert "no tables" in why_refused(database)


def test_the_migrations_of_older_code_leave_a_newer_database_alone(url: str) -> None:
    assert migrate(url) == (newest_revision(), None)
    say(url, "UPDATE alembic_version SET version_num = 'r9999'", "UPDATE schema_version SET revision = 9999")
    done = migrate(url)
    assert done.revision == "r9999"
    assert "nothing was changed" in (done.note or "")

    say(url, f"UPDATE schema_version SET oldest_code = {CODE + 1}")
    with pytest.raises(Invalid, match="newer"):
        migrate(url)


def test_a_migration_that_was_cut_short_is_completed(database: Engine, url: str) -> None:
    say(url, "UPDATE alembic_version SET version_num = 'r0001'", "UPDATE schema_version SET revision = 1")
    say(url, "ALTER TABLE lanes DROP needs_code")
    assert migrate(url) == (newest_revision(), None)
    with transaction(database) as connection:
        check_version(read_version(connection))
        assert connection.exec_driver_sql("SELECT count(*) FROM lanes WHERE needs_code = 0").scalar() == 0


def test_a_new_column_breaks_no_statement_that_is_prepared(
    settings: Settings, story: Story, client: httpx.Client, url: str
) -> None:
    """Postgres refuses a prepared statement whose result has changed: `SELECT *` after a migration."""
    farm = BatchStory(story, settings)
    job, batch = client.post("/v1/jobs", json=PROMPT).json()["id"], farm.batch_of()
    with transaction(story.database) as connection:
        dataset = datasets.submit(connection, story.tenant(), batch, DatasetPlan())
    origin = {"Origin": str(client.base_url).rstrip("/")}
    client.post("/dashboard/sign-in", data={"key": client.headers["Authorization"].split()[1]}, headers=origin)
    pages = [f"/dashboard/{page}" for page in ("", "jobs", f"jobs/{job}", "batches", "images", "workers", "admin")]
    paths = ["jobs", f"jobs/{job}", "batches", f"batches/{batch}", "datasets", "workers", "queue", "keys", "models"]

    def use_everything() -> None:
        for path in [*pages, *(f"/v1/{path}" for path in paths)]:
            assert client.get(path).status_code == 200, path
        with transaction(story.database) as connection:
            assert read_batch(connection, batch)
            owned = datasets.acquire(connection, dataset, 0)
            assert owned
            assert datasets.advance(connection, owned, Step(0, ends_split=False, images=0, pictures=0))

    for _ in range(7):  # psycopg prepares a statement at its sixth execution
        use_everything()
    say(url, *(f"ALTER TABLE {table} ADD COLUMN later int NOT NULL DEFAULT 7" for table in metadata.tables))
    use_everything()


def test_a_worker_leaves_newer_jobs_alone_and_renders_the_others(story: Story) -> None:
    newer, plain = story.submit(tier=Tier.INTERACTIVE), story.submit()
    with transaction(story.database) as connection:
        make_job_newer(connection, newer)
    microbatch = story.started()
    assert {image.job_id for image in microbatch.images} == {plain}
    story.publish(microbatch)
    assert story.claim() is None
    assert (story.job(newer).state, story.job(plain).state) == ("queued", "succeeded")

    story.change_tier(newer, Tier.BULK)
    assert story.claim() is None


def test_newer_jobs_are_shown_and_retried_as_they_are_stored(client: httpx.Client, story: Story) -> None:
    newer = client.post("/v1/jobs", json=PROMPT).json()["id"]
    with transaction(story.database) as connection:
        make_job_newer(connection, newer)
    assert client.get(f"/v1/jobs/{newer}").json()["recipe"]["control"] == {"image": 1}
    assert [job["id"] for job in client.get("/v1/jobs").json()["items"]] == [newer]

    assert client.post(f"/v1/jobs/{newer}/cancel").json()["state"] == "cancelled"
    retry = client.post(f"/v1/jobs/{newer}/retry").json()
    assert retry["recipe"] == client.get(f"/v1/jobs/{newer}").json()["recipe"]
    assert story.claim() is None, "the retry is newer too"
    client.post(f"/v1/jobs/{retry['id']}/cancel")
    with transaction(story.database) as connection:
        now = datetime.now(UTC) + timedelta(minutes=1)
        step = bulk.retry(connection, story.tenant(), JobFilter(), now, models=["mini-zh"])
    assert [story.job(job).recipe for job in step.changed] == [story.job(newer).recipe]
    assert story.claim() is None


def test_control_workers_leave_newer_batches_and_datasets_alone(
    settings: Settings, story: Story, client: httpx.Client
) -> None:
    batches = BatchStory(story, settings)
    newer, plain = batches.batch_of(["新"]), batches.batch_of(["旧"])
    with transaction(story.database) as connection:
        tenant = story.tenant()
        of_newer = datasets.submit(connection, tenant, newer, DatasetPlan())
        itself_newer, old = (datasets.submit(connection, tenant, plain, DatasetPlan()) for _ in range(2))
        make_batch_newer(connection, newer)
        make_dataset_newer(connection, itself_newer)
        connection.exec_driver_sql("UPDATE batches SET touched_at = now() - interval '1 day'")
        connection.exec_driver_sql("UPDATE datasets SET touched_at = now() - interval '1 day'")
        assert datasets.due(connection, 0, 0) == [old]
        owned = {one: datasets.acquire(connection, one, 0) is not None for one in (of_newer, itself_newer, old)}
        assert owned == {of_newer: False, itself_newer: False, old: True}
    Sweep(settings, story.database, Broker(settings), batches.storage).once()
    for batch in (newer, plain):
        batches.expander.work(batch)

    shown = {batch["id"]: batch for batch in client.get("/v1/batches").json()["items"]}
    assert shown[str(newer)]["state"] == "checking"
    assert shown[str(newer)]["matrix"] == {"control": [1, 2]}
    assert shown[str(plain)]["jobs"] == 1
    assert len(client.get("/v1/datasets").json()["items"]) == 3

    cancelled = client.post(f"/v1/batches/{newer}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    assert not batches.expander.work(newer)


def test_a_newer_batch_that_was_cancelled_is_settled(settings: Settings, story: Story) -> None:
    """After a downgrade nobody else would: its jobs would wait, and its lanes be open, for ever."""
    farm = BatchStory(story, settings)
    newer = farm.expanded()
    with transaction(story.database) as connection:
        make_batch_newer(connection, newer)
    assert farm.expander.choose(newer) is None
    farm.cancel_batch(newer)
    with transaction(story.database) as connection:
        assert stalled(connection, 0) == [newer]
    assert farm.expander.choose(newer) == newer
    assert not farm.expander.work(newer, 60)
    assert {job.state for job in farm.jobs_of(newer)} == {"cancelled"}
    assert farm.end() == [newer]


def test_the_check_of_a_file_finds_what_its_lines_need(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines may have any field of a recipe, so the plan alone does not say it."""
    from common.recipes.recipe import SINCE

    batches = BatchStory(story, settings)
    batch = batches.batch_of_lines({"prompt": "圆"}, {"prompt": "方", "scheduler": "lms"})
    monkeypatch.setitem(SINCE, "scheduler", lambda value: CODE + 1 if value == "lms" else 1)
    batches.expander.work(batch)
    assert story.rows("SELECT needs_code FROM batches") == [(CODE + 1,)]
    assert story.rows("SELECT needs_code FROM lanes ORDER BY 1") == []
    monkeypatch.setattr("common.batches.chunks.CODE", CODE + 1)
    batches.expander.work(batch)
    assert story.rows("SELECT needs_code FROM lanes ORDER BY 1") == [(1,), (CODE + 1,)]
    assert {image.recipe.prompt for image in story.started().images} == {"圆"}


def test_messages_of_newer_code_are_understood(settings: Settings) -> None:
    from common.broker import celery_app

    class Anything:
        def __init__(self) -> None:
            self.called: list[Any] = []

        def run(self) -> bool:
            self.called.append("run")
            return False

        def once(self) -> None:
            self.called.append("once")

        def choose(self, subject: UUID) -> UUID:
            return subject

        def start(self, subject: UUID, again: Callable[[UUID], None]) -> None:
            self.called.append(subject)

        def work(self, subject: UUID) -> bool:
            self.called.append(subject)
            return False

    app, it, broker, some = celery_app(settings), Anything(), Broker(settings), UUID(int=7)
    tasks.add_render(app, it, broker)  # type: ignore[arg-type]
    tasks.add_sweep(app, it)  # type: ignore[arg-type]
    tasks.add_advance(app, it, broker)  # type: ignore[arg-type]
    tasks.add_export(app, it, broker)  # type: ignore[arg-type]
    messages: dict[str, dict[str, Any]] = {  # as they have been from the first release on
        "render": {"model": "mini-zh", "job": str(some), "tier": "bulk"},
        "sweep": {},
        "advance": {"batch": str(some)},
        "export": {"dataset": str(some)},
    }
    for name, message in messages.items():
        app.tasks[name](**message)
        app.tasks[name](**message, since="a newer version")
    assert it.called == ["run", "run", "once", "once", some, some, some, some]
