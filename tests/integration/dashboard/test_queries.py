"""What the views read from the database."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from api.dashboard import alerts, sentence
from api.dashboard.alerts import Alert
from api.dashboard.views import admin, batches, images, job, workers
from api.dashboard.views.images import ImageSearch, StoredImage
from api.queries.fleet import read_fleet
from api.queries.models import find_models
from bench.harness import backlog
from common import failures
from common.accounts.keys import create_key, revoke_key
from common.datasets import lifecycle as datasets
from common.datasets.layout import DatasetPlan
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier, WorkerState
from common.failures import INTERNAL_ERROR
from common.queue import stats
from common.queue import workers as queue_workers
from common.queue.stats import DAY, HOUR, read_backlog
from common.queue.workers import Worker
from common.recipes.recipe import MAX_SEED
from tests.support.small_disk import small_disk
from tests.support.stories import CATALOG, Story
from tests.support.workers import quarantine

REFUSED = {"error_code": "bad", "error_message": "It cannot be drawn.", "retryable": False}


class Reader:
    """The queries of the views, for one tenant."""

    def __init__(self, story: Story, tenant: str = "somebody") -> None:
        self.database = story.database
        self.tenant_id = story.tenant(tenant)

    def ask(self, query: Any, *args: Any, **more: Any) -> Any:
        with transaction(self.database) as connection:
            return query(connection, self.tenant_id, *args, **more)

    def chart(self, span: stats.Span = HOUR) -> list[tuple[int, int, int, int]]:
        """Stored, flagged, failed and cancelled, step by step."""
        with transaction(self.database) as connection:
            points = stats.read_chart(connection, span)
        assert {later.at - point.at for point, later in pairwise(points)} == {timedelta(minutes=span.step)}
        assert len(points) == span.minutes / span.step
        return [(point.stored, point.flagged, point.failed, point.cancelled) for point in points]

    def tallies(self) -> list[stats.Tally]:
        with transaction(self.database) as connection:
            return list(stats.read_tallies(connection))

    def alerts(self, silence_s: float = 30, home: Path = Path("/nonexistent")) -> list[Alert]:
        with transaction(self.database) as connection:
            seen = read_backlog(connection), read_fleet(connection), stats.read_tallies(connection)
            return list(alerts.find_alerts(connection, self.tenant_id, *seen, silence_s, home))

    def images(self, **fields: Any) -> list[UUID]:
        return [image.id for image in self.ask(images.find_images, ImageSearch(**{"limit": 50} | fields)).items]


@pytest.fixture
def reader(story: Story) -> Reader:
    return Reader(story)


def change(story: Story, statement: str, **values: Any) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement), values)


def beat(story: Story, **fields: Any) -> UUID:
    """Register a ready worker, for which the story claims from now on."""
    story.worker_id = new_id()
    given = {"name": "gpu-1", "worker_class": {"device": "L4"}, "models": ["mini-zh"], **fields}
    with transaction(story.database) as connection:
        queue_workers.heartbeat(connection, Worker(story.worker_id, **given), ready=True)
    return story.worker_id


def seconds_since(alert: Alert) -> float:
    since = alert.sentence.params["since"]
    assert isinstance(since, datetime)
    return (datetime.now(UTC) - since).total_seconds()


def take_sample(story: Story, minutes_ago: int = 0) -> None:
    """Take a sample and date it back."""
    with transaction(story.database) as connection:
        stats.take_sample(connection)
    change(story, "UPDATE lane_samples SET minute = minute - make_interval(mins => :ago)", ago=minutes_ago)


def ended_images(story: Story, state: ImageState = ImageState.STORED, **fields: Any) -> list[UUID]:
    """The images of a new job, ended."""
    error = REFUSED if state == ImageState.FAILED else {}
    job = story.submit(**fields)
    story.publish(story.started(capacities={fields.get("model", "mini-zh"): 8}), state, **error)
    return [image.id for image in story.images(job)]


# Samples and charts


def test_a_chart_shows_what_the_lanes_counted_between_samples(story: Story, reader: Reader) -> None:
    ended_images(story, count=3)
    take_sample(story, minutes_ago=20)
    ended_images(story, ImageState.FAILED)
    ended_images(story, ImageState.FLAGGED, tier=Tier.BULK)
    take_sample(story, minutes_ago=10)
    story.cancel(story.submit())
    hour = reader.chart()
    assert hour[-1] == (0, 0, 0, 1), "The last step counts what ended since the last sample."
    assert [step for step in hour[:-1] if any(step)] == [(3, 0, 0, 0), (0, 1, 1, 0)]
    assert len(hour) - hour.index((0, 1, 1, 0)) in (12, 13), "Ten minutes ago, or eleven."
    assert [sum(column) for column in zip(*reader.chart(DAY), strict=True)] == [3, 1, 1, 1]
    assert [(tally.tier, tally.flagged, tally.failed) for tally in reader.tallies()] == [
        (Tier.STANDARD, 0, 1),
        (Tier.BULK, 1, 0),
    ]


def test_there_is_one_sample_a_minute(story: Story, reader: Reader) -> None:
    ended_images(story)
    with transaction(story.database) as connection:  # the clock of a transaction stands still
        stats.take_sample(connection)
        connection.execute(text("UPDATE lanes SET stored = 2"))
        stats.take_sample(connection)
    (kept,) = story.rows("SELECT stored, minute FROM lane_samples")
    assert kept.stored == 1
    assert datetime.now(UTC) - kept.minute < timedelta(minutes=3)


def test_counters_that_were_reset_show_as_zero(story: Story, reader: Reader) -> None:
    ended_images(story, count=3)
    take_sample(story, minutes_ago=5)
    change(story, "UPDATE lanes SET stored = 0")
    assert reader.chart()[-3:] == [(0, 0, 0, 0)] * 3
    assert reader.tallies() == []


# Alerts


def test_a_healthy_farm_has_no_alerts(story: Story, reader: Reader) -> None:
    beat(story)
    ended_images(story)
    story.submit(tier=Tier.INTERACTIVE)
    take_sample(story)
    assert reader.alerts() == []


@pytest.mark.needs("small_disk")
def test_alerts_name_full_disks_of_the_local_farm(story: Story, reader: Reader, tmp_path: Path) -> None:
    with small_disk(tmp_path, 2**20) as disk:
        home = disk.outside
        (home / "logs").mkdir()
        disk.fill()
        assert reader.alerts(home=home) == [Alert(sentence("log_disk_full", folder=home / "logs"))]
        (home / "postgres").mkdir()
        assert reader.alerts(home=home) == [Alert(sentence("data_disk_full", folder=home / "postgres"))]


def test_alerts_name_models_that_no_worker_renders(story: Story, reader: Reader) -> None:
    story.submit(model="zh-v0", count=3)
    story.submit()
    worker_id = beat(story, refusals={"zh-v0": "It is gated."})
    with transaction(story.database) as connection:
        queue_workers.drain(connection, worker_id, "an operator asked for it")
    assert reader.alerts() == [
        Alert(sentence("no_worker", model="zh-v0", count=3)),
        Alert(sentence("all_draining", model="mini-zh", count=1)),
        Alert(sentence("model_refused", model="zh-v0", worker="gpu-1", count=1, reason="It is gated.")),
    ]


def test_alerts_name_quarantined_workers_and_models_that_wait_for_them(story: Story, reader: Reader) -> None:
    beat(story, name="sick")
    quarantine(story, "sick", "its calls fail")
    quarantine(story, "gone for days", "its calls fail")
    [alert] = reader.alerts()
    assert (alert.sentence.code, alert.sentence.params["worker"]) == ("worker_quarantined", "sick")
    assert alert.sentence.params["reason"] == "its calls fail"
    assert seconds_since(alert) == pytest.approx(0, abs=60)

    story.submit(count=3)
    assert reader.alerts()[0] == Alert(sentence("all_quarantined", model="mini-zh", count=3))
    beat(story, name="well")
    assert [alert.sentence.code for alert in reader.alerts()] == ["worker_quarantined"]


def test_alerts_name_silent_workers(story: Story, reader: Reader) -> None:
    for name, seconds in (("lost", 300), ("silent", 60), ("well", 0)):
        worker_id = beat(story, name=name)
        ago = {"id": worker_id, "ago": seconds}
        change(story, "UPDATE workers SET seen_at = now() - make_interval(secs => :ago) WHERE id = :id", **ago)
    with transaction(story.database) as connection:
        queue_workers.prune(connection, silence_s=200)
    found = reader.alerts()
    assert [(alert.sentence.code, alert.sentence.params["worker"]) for alert in found] == [
        ("worker_silent", "silent"),
        ("worker_lost", "lost"),
    ]
    assert seconds_since(found[0]) == pytest.approx(60, abs=30)


def test_alerts_name_a_missing_step_failures_and_long_waits(story: Story, reader: Reader) -> None:
    beat(story)
    ended_images(story)
    take_sample(story, minutes_ago=4)
    for _ in range(5):
        ended_images(story, ImageState.FAILED)
    waiting = story.submit(tier=Tier.INTERACTIVE)
    change(story, "UPDATE jobs SET created_at = now() - interval '70 s' WHERE id = :job", job=waiting)
    silent, failing, waits = reader.alerts()
    assert silent.sentence.code == "no_control"
    assert seconds_since(silent) == pytest.approx(270, abs=60)
    assert failing.sentence == sentence("failures", model="mini-zh", count=5, share="83%")
    assert (waits.sentence.code, waits.sentence.params["count"]) == ("interactive_waits", 1)
    assert seconds_since(waits) == pytest.approx(90, abs=21)


def test_alerts_name_the_batches_that_a_stop_rule_paused(story: Story, reader: Reader) -> None:
    stopped, paused = (backlog.fill(story.database, "somebody", images=4) for _ in range(2))
    beat(story, models=["zh-v0"])
    change(story, "UPDATE batches SET paused_at = now() WHERE id = ANY(:ids)", ids=[stopped, paused])
    change(
        story,
        "UPDATE batches SET stop_rule = '{}', paused_because = '3 of 4', name = 'doors' WHERE id = :id",
        id=stopped,
    )
    assert reader.alerts() == [Alert(sentence("batch_paused", batch="doors", reason="3 of 4"), batch_id=stopped)]
    assert Reader(story, "somebody else").alerts() == []


def test_alerts_name_what_ended_for_an_unforeseen_reason(story: Story, reader: Reader) -> None:
    """For a day, or until it is settled, and to their tenant."""
    given_up, old, refused = (backlog.fill(story.database, "somebody", images=4) for _ in range(3))
    beat(story, models=["zh-v0"])
    ended = "finished_at = now() - make_interval(hours => :hours), error_code = :code, error_message = 'Search 12ab.'"
    for batch_id, hours, code in ((given_up, 23, INTERNAL_ERROR), (old, 25, INTERNAL_ERROR), (refused, 1, "invalid")):
        change(story, f"UPDATE batches SET {ended} WHERE id = :id", id=batch_id, hours=hours, code=code)
        with transaction(story.database) as connection:
            dataset_id = datasets.submit(connection, reader.tenant_id, batch_id, DatasetPlan())
        change(story, f"UPDATE datasets SET {ended} WHERE id = :id", id=dataset_id, hours=hours, code=code)
    (dataset_id,) = [row.id for row in story.rows("SELECT id FROM datasets WHERE batch_id = :id", id=given_up)]
    of_batch = Alert(sentence("batch_given_up", batch=given_up, reason="Search 12ab."), batch_id=given_up)
    of_dataset = Alert(sentence("dataset_given_up", dataset=dataset_id, reason="Search 12ab."), dataset_id=dataset_id)
    assert reader.alerts() == [of_batch, of_dataset]
    assert Reader(story, "somebody else").alerts() == []

    change(
        story, "UPDATE batches SET finished_at = NULL, cancelled_at = now() - interval '3 days' WHERE id = :id", id=old
    )
    still_fails = Alert(sentence("batch_given_up", batch=old, reason="Search 12ab."), batch_id=old)
    assert reader.alerts() == [still_fails, of_batch, of_dataset]


def test_alerts_name_what_the_sweep_cannot_repair(story: Story, reader: Reader) -> None:
    """To everybody, once it has failed five times in a row."""
    for failure in range(1, 6):
        assert reader.alerts() == []
        for step, row in (("expire", "a job"), ("rescue", "")):
            with transaction(story.database) as connection:
                failures.record(connection, step, row, f"reference-{failure}")
        change(story, "UPDATE step_failures SET retry_at = now()")
    by_step = {row.step: row.since for row in story.rows("SELECT step, since FROM step_failures")}
    seen = {"count": 5, "reference": "reference-5"}
    expected = [
        Alert(sentence("step_fails", step="rescue", since=by_step["rescue"], **seen)),
        Alert(sentence("step_fails_at_row", step="expire", row="a job", since=by_step["expire"], **seen)),
    ]
    assert reader.alerts() == Reader(story, "somebody else").alerts() == expected


# A job


def test_the_leases_of_a_job_are_its_timeline(story: Story, reader: Reader) -> None:
    worker_id = beat(story)
    job_id = story.submit(count=3)
    story.submit(count=2)
    released = story.started(capacity=2)
    story.release(released)
    held = story.claim()
    assert held is not None
    first, second = reader.ask(job.find_leases, job_id)
    assert (first.id, first.outcome, list(first.images), first.microbatch_size) == (
        released.lease_id,
        "released",
        [0, 1],
        2,
    )
    assert (second.id, second.worker_id, second.worker) == (held.lease_id, worker_id, "gpu-1")
    assert (second.outcome, second.started_at, list(second.images), second.microbatch_size) == (
        None,
        None,
        [0, 1, 2],
        5,
    )
    assert second.worker_class == {"device": "L4"}
    assert [lease.id for lease in reader.ask(job.find_leases, job_id, limit=1)] == [held.lease_id]
    assert Reader(story, "somebody else").ask(job.find_leases, job_id) == []


def test_the_timeline_shows_the_leases_of_attempts_that_failed_or_were_lost(story: Story, reader: Reader) -> None:
    job_id = story.submit()
    failed = story.started()
    story.publish(failed, ImageState.FAILED, error_code="out_of_memory", retryable=True)
    story.skip_backoff()
    lost = story.started()
    story.die(lost)
    story.skip_backoff()
    stored = story.started()
    story.publish(stored)
    timeline = reader.ask(job.find_leases, job_id)
    assert [lease.id for lease in timeline] == [failed.lease_id, lost.lease_id, stored.lease_id]
    assert [lease.outcome for lease in timeline] == ["published", "lost", "published"]


def test_the_timeline_reads_the_leases_of_its_job_alone(story: Story, reader: Reader) -> None:
    job_id = story.submit(count=4)
    story.publish(story.started())
    change(
        story,
        """
        INSERT INTO leases (id, worker_id, image_ids, expires_at, ended_at, outcome)
        SELECT uuidv7(), uuidv7(), ARRAY[uuidv7()], now(), now(), 'published' FROM generate_series(1, 5000)""",
    )
    change(story, "ANALYZE leases")
    wanted = {"tenant": reader.tenant_id, "job": job_id, "limit": 100}
    with transaction(story.database) as connection:
        plan = "\n".join(connection.execute(text(f"EXPLAIN {job.LEASES.text}"), wanted).scalars())
    assert "leases_pkey" in plan
    assert "Seq Scan on leases" not in plan


def test_of_an_image_that_is_given_back_again_and_again_the_last_leases_are_known(story: Story, reader: Reader) -> None:
    job_id = story.submit()
    given_back = []
    for _ in range(23):
        given_back.append(story.started())
        story.release(given_back[-1])
    timeline = reader.ask(job.find_leases, job_id)
    assert [lease.id for lease in timeline] == [microbatch.lease_id for microbatch in given_back[-20:]]


# Images


def test_images_are_paged_newest_first(story: Story, reader: Reader) -> None:
    first, second = ended_images(story, prompt="雪中的小亭子", count=2), ended_images(story, prompt="一只猫")
    ended_images(story, ImageState.FLAGGED)
    ended_images(story, tenant="somebody else")
    third = ended_images(story, model="zh-v0", steps=3)
    in_order = [*third, *second, *first[::-1]]
    assert reader.images() == in_order
    assert reader.images(model="zh-v0") == third
    page = reader.ask(images.find_images, ImageSearch(limit=2))
    rest = reader.ask(images.find_images, ImageSearch(limit=2, before=page.next))
    assert [image.id for image in [*page.items, *rest.items]] == in_order
    assert rest.next is None
    image: StoredImage = page.items[0]
    assert (image.recipe["model"], image.index, image.seed) == ("zh-v0", 0, image.recipe["seeds"][0])


def test_images_are_found_by_words_of_their_prompts(story: Story, reader: Reader) -> None:
    snow, cat = ended_images(story, prompt="雪中的小亭子", count=3), ended_images(story, prompt="雪地里的一只猫")
    story.submit(prompt="雪")
    assert reader.images(q="雪") == [*cat, *snow]
    assert reader.images(q="亭子") == snow
    page = reader.ask(images.find_images, ImageSearch(limit=1, q="雪"))
    rest = reader.ask(images.find_images, ImageSearch(limit=1, q="雪", before=page.next))
    assert [image.id for image in rest.items] == snow, "A page has whole jobs."


def test_an_image_is_compared_with_those_of_its_prompt_and_seed(story: Story, reader: Reader) -> None:
    seeds = {"prompt": "雪中的小亭子", "seed": 7, "count": 2}
    mine, many_steps, other_model = (
        ended_images(story, **seeds),
        ended_images(story, **seeds, steps=5),
        ended_images(story, **seeds, steps=9),
    )
    ended_images(story, **seeds | {"seed": 70})
    ended_images(story, **seeds, tenant="somebody else")
    ended_images(story, **seeds | {"prompt": "雪中的小亭子和猫"})
    found = [image.id for image in reader.ask(images.find_same_prompt_and_seed, mine[1])]
    assert found == [mine[1], other_model[1], many_steps[1]]
    assert Reader(story, "somebody else").ask(images.find_same_prompt_and_seed, mine[1]) == []
    assert reader.ask(images.find_same_prompt_and_seed, new_id()) == []


def test_the_largest_seed_is_compared_too(story: Story, reader: Reader) -> None:
    mine = [ended_images(story, seed=MAX_SEED, steps=steps)[0] for steps in (5, 9)]
    assert [image.id for image in reader.ask(images.find_same_prompt_and_seed, mine[0])] == mine


# Batches


def test_a_batch_shows_its_newest_images_and_its_failures(story: Story, reader: Reader) -> None:
    batch, other = (backlog.fill(story.database, "somebody", images=12) for _ in range(2))
    microbatch = story.started(capacities={"zh-v0": 8})
    stored = [image.id for image in microbatch.images]
    story.publish(microbatch)
    failing = story.started(capacities={"zh-v0": 3})
    story.publish(failing, ImageState.FAILED, **REFUSED)
    story.publish(story.started(capacities={"zh-v0": 1}), ImageState.FAILED, **REFUSED | {"error_code": "worse"})

    thumbnails = reader.ask(batches.find_thumbnails, [batch, other], limit=5)
    assert {batch_id: len(found) for batch_id, found in thumbnails.items()} == {batch: 5, other: 0}
    assert {image.id for image in thumbnails[batch]} <= {*stored}
    bad, worse = reader.ask(batches.find_failure_groups, batch)
    assert (bad.code, bad.count, bad.message, worse.code, worse.count) == ("bad", 3, "It cannot be drawn.", "worse", 1)
    assert bad.image_id in {image.id for image in failing.images}
    assert "山水" in bad.prompt
    stranger = Reader(story, "somebody else")
    assert stranger.ask(batches.find_failure_groups, batch) == []
    assert stranger.ask(batches.find_thumbnails, [batch]) == {batch: []}


# Workers


def test_workers_show_their_microbatches_and_their_errors(story: Story, reader: Reader) -> None:
    worker_id = beat(story, resident=["mini-zh"], capacity={"mini-zh": 8})
    mine = ended_images(story, ImageState.FAILED, count=2)
    ended_images(story, ImageState.FAILED, tenant="somebody else")
    job = story.submit(count=2)
    now = story.started(capacity=2)
    story.submit("somebody else")
    ahead = story.claim()
    idle_id = beat(story, name="gpu-2")

    busy, idle = reader.ask(workers.find_workers)
    assert (busy.id, busy.state, busy.capacity, idle.id, idle.held) == (
        worker_id,
        WorkerState.READY,
        {"mini-zh": 8},
        idle_id,
        [],
    )
    first, second = busy.held
    assert (first.lease_id, first.images, first.jobs, first.job_ids) == (now.lease_id, 2, 1, [job])
    assert (second.lease_id, second.started_at, second.job_ids) == (ahead.lease_id, None, [])
    assert first.started_at is not None

    theirs, *own = reader.ask(workers.find_worker_errors)[worker_id]
    assert (theirs.job_id, theirs.code, theirs.model) == (None, "bad", "mini-zh")
    assert [error.job_id for error in own] == [
        story.rows("SELECT job_id FROM images WHERE id = :i", i=mine[0])[0][0]
    ] * 2
    assert len(reader.ask(workers.find_worker_errors, each=1)[worker_id]) == 1


# Admin


def test_an_administrator_sees_keys_without_secrets_and_models(story: Story, reader: Reader) -> None:
    with transaction(story.database) as connection:
        old, new = (create_key(connection, reader.tenant_id, name, [Scope.VIEWER], "pepper") for name in ("old", "new"))
        create_key(connection, story.tenant("somebody else"), "theirs", [Scope.ADMIN], "pepper")
        revoke_key(connection, reader.tenant_id, old.id)
    beat(story, resident=["mini-zh"])
    shown = reader.ask(admin.valid_keys_first)
    assert [(key.name, key.scopes, key.revoked_at is None) for key in shown] == [
        ("new", ["viewer"], True),
        ("old", ["viewer"], False),
    ]
    assert new.secret not in str(shown)
    models = {model.name: model for model in reader.ask(find_models, CATALOG, "mini-zh")}
    assert models["mini-zh"].availability.resident_on == ["gpu-1"]
    assert models["zh-v0"].licence_accepted_at is None
