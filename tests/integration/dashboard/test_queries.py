"""What the screens read, asked of farms whose story is known."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from api.dashboard import alerts
from api.dashboard.alerts import Alert, AlertCode
from api.dashboard.queries import admin, batches, gallery, jobs, overview, workers
from api.dashboard.queries.gallery import GallerySearch, Picture
from api.dashboard.queries.overview import DAY, HOUR
from api.queries.fleet import read_fleet
from api.queries.models import find_models
from bench.harness import backlog
from common.accounts.tenants import create_key, revoke_key
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier, WorkerState
from common.queue import samples
from common.queue import workers as crew
from common.queue.stats import read_backlog
from common.queue.workers import Worker
from common.recipes.recipe import MAX_SEED
from tests.support.stories import CATALOG, Story

REFUSED = {"error_code": "bad", "error_message": "It cannot be drawn.", "retryable": False}


class Screens:
    """The queries, as a screen of one tenant asks them."""

    def __init__(self, story: Story, tenant: str = "somebody") -> None:
        self.database = story.database
        self.tenant_id = story.tenant(tenant)

    def ask(self, query: Any, *args: Any, **more: Any) -> Any:
        with transaction(self.database) as connection:
            return query(connection, self.tenant_id, *args, **more)

    def chart(self, span: overview.Span = HOUR) -> list[tuple[int, int, int, int]]:
        """Stored, flagged, failed and cancelled, step by step."""
        with transaction(self.database) as connection:
            points = overview.read_chart(connection, span)
        assert {later.at - point.at for point, later in pairwise(points)} == {timedelta(minutes=span.step)}
        assert len(points) == span.minutes / span.step
        return [(point.stored, point.flagged, point.failed, point.cancelled) for point in points]

    def tallies(self) -> list[overview.Tally]:
        with transaction(self.database) as connection:
            return list(overview.read_tallies(connection))

    def alerts(self, silence_s: float = 30) -> list[Alert]:
        with transaction(self.database) as connection:
            seen = read_backlog(connection), read_fleet(connection), overview.read_tallies(connection)
            return list(alerts.find_alerts(connection, self.tenant_id, *seen, silence_s))

    def pictures(self, **what: Any) -> list[UUID]:
        return [picture.id for picture in self.ask(gallery.find_pictures, GallerySearch(**{"limit": 50} | what)).items]


@pytest.fixture
def screens(story: Story) -> Screens:
    return Screens(story)


def change(story: Story, statement: str, **values: Any) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement), values)


def beat(story: Story, **fields: Any) -> UUID:
    """A worker that is ready, and the one that the story claims for from now on."""
    story.worker_id = new_id()
    said = {"name": "gpu-1", "worker_class": {"device": "L4"}, "models": ["mini-zh"], **fields}
    with transaction(story.database) as connection:
        crew.heartbeat(connection, Worker(story.worker_id, **said), ready=True)
    return story.worker_id


def take_sample(story: Story, minutes_ago: int = 0) -> None:
    """As if time went on by so many minutes after it."""
    with transaction(story.database) as connection:
        samples.take(connection)
    change(story, "UPDATE lane_samples SET minute = minute - make_interval(mins => :ago)", ago=minutes_ago)


def drawn(story: Story, state: ImageState = ImageState.STORED, **fields: Any) -> list[UUID]:
    """The images of a new job, ended."""
    error = REFUSED if state == ImageState.FAILED else {}
    job = story.submit(**fields)
    story.publish(story.started(capacities={fields.get("model", "mini-zh"): 8}), state, **error)
    return [image.id for image in story.images(job)]


# Samples and charts


def test_a_chart_shows_what_the_lanes_counted_between_samples(story: Story, screens: Screens) -> None:
    drawn(story, count=3)
    take_sample(story, minutes_ago=20)
    drawn(story, ImageState.FAILED)
    drawn(story, ImageState.FLAGGED, tier=Tier.BULK)
    take_sample(story, minutes_ago=10)
    story.cancel(story.submit())
    hour = screens.chart()
    assert hour[-1] == (0, 0, 0, 1), "What has happened since the last sample is there already."
    assert [step for step in hour[:-1] if any(step)] == [(3, 0, 0, 0), (0, 1, 1, 0)]
    assert len(hour) - hour.index((0, 1, 1, 0)) in (12, 13), "Ten minutes ago; the clock may have gone on by one."
    assert [sum(column) for column in zip(*screens.chart(DAY), strict=True)] == [3, 1, 1, 1]
    assert [(tally.tier, tally.flagged, tally.failed) for tally in screens.tallies()] == [
        (Tier.STANDARD, 0, 1),
        (Tier.BULK, 1, 0),
    ]


def test_of_each_minute_there_is_one_sample_and_old_ones_go(story: Story, screens: Screens) -> None:
    drawn(story)
    take_sample(story, minutes_ago=9 * 24 * 60)
    with transaction(story.database) as connection:  # the clock of a transaction stands still
        samples.take(connection)
        connection.execute(text("UPDATE lanes SET stored = 2"))
        samples.take(connection)
    (kept,) = story.rows("SELECT stored, minute FROM lane_samples")
    assert kept.stored == 1
    assert datetime.now(UTC) - kept.minute < timedelta(minutes=3)


def test_counters_that_begin_anew_show_as_nothing(story: Story, screens: Screens) -> None:
    drawn(story, count=3)
    take_sample(story, minutes_ago=5)
    change(story, "UPDATE lanes SET stored = 0")
    assert screens.chart()[-3:] == [(0, 0, 0, 0)] * 3
    assert screens.tallies() == []


# Alerts


def test_a_farm_that_is_well_gives_no_alert(story: Story, screens: Screens) -> None:
    beat(story)
    drawn(story)
    story.submit(tier=Tier.INTERACTIVE)
    take_sample(story)
    assert screens.alerts() == []


def test_alerts_say_what_waits_in_vain_and_why(story: Story, screens: Screens) -> None:
    story.submit(model="zh-v0", count=3)
    story.submit()
    worker_id = beat(story, refusals={"zh-v0": "It is gated."})
    with transaction(story.database) as connection:
        crew.drain(connection, worker_id, "an operator asked for it")
    assert screens.alerts() == [
        Alert(AlertCode.NO_WORKER, model="zh-v0", count=3),
        Alert(AlertCode.ALL_DRAINING, model="mini-zh", count=1),
        Alert(AlertCode.MODEL_REFUSED, model="zh-v0", worker="gpu-1", count=1, reason="It is gated."),
    ]


def test_alerts_name_workers_that_fell_silent(story: Story, screens: Screens) -> None:
    for name, seconds in (("lost", 300), ("silent", 60), ("well", 0)):
        worker_id = beat(story, name=name)
        ago = {"id": worker_id, "ago": seconds}
        change(story, "UPDATE workers SET seen_at = now() - make_interval(secs => :ago) WHERE id = :id", **ago)
    with transaction(story.database) as connection:
        crew.prune(connection, silence_s=200)
    found = screens.alerts()
    assert [(alert.code, alert.worker) for alert in found] == [
        (AlertCode.WORKER_SILENT, "silent"),
        (AlertCode.WORKER_LOST, "lost"),
    ]
    assert found[0].seconds == pytest.approx(60, abs=30)


def test_alerts_say_that_nobody_sweeps_much_fails_and_somebody_waits_long(story: Story, screens: Screens) -> None:
    beat(story)
    drawn(story)
    take_sample(story, minutes_ago=4)
    for _ in range(5):
        drawn(story, ImageState.FAILED)
    waiting = story.submit(tier=Tier.INTERACTIVE)
    change(story, "UPDATE jobs SET created_at = now() - interval '70 s' WHERE id = :job", job=waiting)
    silent, failing, waits = screens.alerts()
    assert silent.code == AlertCode.NO_CONTROL
    assert silent.seconds == pytest.approx(270, abs=60)
    assert (failing.code, failing.model, failing.count) == (AlertCode.FAILURES, "mini-zh", 5)
    assert failing.share == pytest.approx(5 / 6)
    assert (waits.code, waits.count) == (AlertCode.INTERACTIVE_WAITS, 1)
    assert waits.seconds == pytest.approx(90, abs=21)


def test_alerts_name_the_batches_that_paused_by_themselves(story: Story, screens: Screens) -> None:
    stopped, paused = (backlog.fill(story.database, "somebody", images=4) for _ in range(2))
    beat(story, models=["zh-v0"])
    change(story, "UPDATE batches SET paused_at = now() WHERE id = ANY(:ids)", ids=[stopped, paused])
    change(
        story,
        "UPDATE batches SET stop_rule = '{}', paused_because = '3 of 4', name = 'doors' WHERE id = :id",
        id=stopped,
    )
    assert screens.alerts() == [Alert(AlertCode.BATCH_PAUSED, batch_id=stopped, batch="doors", reason="3 of 4")]
    assert Screens(story, "somebody else").alerts() == []


# A job


def test_the_leases_of_a_job_are_its_timeline(story: Story, screens: Screens) -> None:
    worker_id = beat(story)
    job = story.submit(count=3)
    story.submit(count=2)
    released = story.started(capacity=2)
    story.release(released)
    held = story.claim()
    assert held is not None
    first, second = screens.ask(jobs.find_leases, job)
    assert (first.id, first.outcome, list(first.images), first.company) == (released.lease_id, "released", [0, 1], 2)
    assert (second.id, second.worker_id, second.worker) == (held.lease_id, worker_id, "gpu-1")
    assert (second.outcome, second.started_at, list(second.images), second.company) == (None, None, [0, 1, 2], 5)
    assert second.worker_class == {"device": "L4"}
    assert [lease.id for lease in screens.ask(jobs.find_leases, job, limit=1)] == [held.lease_id]
    assert Screens(story, "somebody else").ask(jobs.find_leases, job) == []


# Pictures


def test_the_gallery_shows_the_newest_pictures_first_a_page_after_the_other(story: Story, screens: Screens) -> None:
    first, second = drawn(story, prompt="雪中的小亭子", count=2), drawn(story, prompt="一只猫")
    drawn(story, ImageState.FLAGGED)
    drawn(story, tenant="somebody else")
    third = drawn(story, model="zh-v0", steps=3)
    in_order = [*third, *second, *first[::-1]]
    assert screens.pictures() == in_order
    assert screens.pictures(model="zh-v0") == third
    page = screens.ask(gallery.find_pictures, GallerySearch(limit=2))
    rest = screens.ask(gallery.find_pictures, GallerySearch(limit=2, before=page.next))
    assert [picture.id for picture in [*page.items, *rest.items]] == in_order
    assert rest.next is None
    picture: Picture = page.items[0]
    assert (picture.recipe["model"], picture.index, picture.seed) == ("zh-v0", 0, picture.recipe["seeds"][0])


def test_the_gallery_finds_pictures_by_the_words_of_their_prompts(story: Story, screens: Screens) -> None:
    snow, cat = drawn(story, prompt="雪中的小亭子", count=3), drawn(story, prompt="雪地里的一只猫")
    story.submit(prompt="雪")
    assert screens.pictures(q="雪") == [*cat, *snow]
    assert screens.pictures(q="亭子") == snow
    page = screens.ask(gallery.find_pictures, GallerySearch(limit=1, q="雪"))
    rest = screens.ask(gallery.find_pictures, GallerySearch(limit=1, q="雪", before=page.next))
    assert [picture.id for picture in rest.items] == snow, "Whole jobs are on a page."


def test_a_picture_is_compared_with_those_of_its_prompt_and_seed(story: Story, screens: Screens) -> None:
    seeds = {"prompt": "雪中的小亭子", "seed": 7, "count": 2}
    mine, many_steps, other_model = (
        drawn(story, **seeds),
        drawn(story, **seeds, steps=5),
        drawn(story, **seeds, steps=9),
    )
    drawn(story, **seeds | {"seed": 70})
    drawn(story, **seeds, tenant="somebody else")
    drawn(story, **seeds | {"prompt": "雪中的小亭子和猫"})
    found = [picture.id for picture in screens.ask(gallery.find_same_prompt_and_seed, mine[1])]
    assert found == [mine[1], other_model[1], many_steps[1]]
    assert Screens(story, "somebody else").ask(gallery.find_same_prompt_and_seed, mine[1]) == []
    assert screens.ask(gallery.find_same_prompt_and_seed, new_id()) == []


def test_the_largest_seed_is_compared_like_any(story: Story, screens: Screens) -> None:
    mine = [drawn(story, seed=MAX_SEED, steps=steps)[0] for steps in (5, 9)]
    assert [picture.id for picture in screens.ask(gallery.find_same_prompt_and_seed, mine[0])] == mine


# Batches


def test_a_batch_shows_its_newest_pictures_and_what_went_wrong(story: Story, screens: Screens) -> None:
    batch, other = (backlog.fill(story.database, "somebody", images=12) for _ in range(2))
    microbatch = story.started(capacities={"zh-v0": 8})
    stored = [image.id for image in microbatch.images]
    story.publish(microbatch)
    failing = story.started(capacities={"zh-v0": 3})
    story.publish(failing, ImageState.FAILED, **REFUSED)
    story.publish(story.started(capacities={"zh-v0": 1}), ImageState.FAILED, **REFUSED | {"error_code": "worse"})

    strips = screens.ask(batches.find_thumbnails, [batch, other], limit=5)
    assert {batch_id: len(strip) for batch_id, strip in strips.items()} == {batch: 5, other: 0}
    assert {picture.id for picture in strips[batch]} <= {*stored}
    bad, worse = screens.ask(batches.find_failure_groups, batch)
    assert (bad.code, bad.count, bad.message, worse.code, worse.count) == ("bad", 3, "It cannot be drawn.", "worse", 1)
    assert bad.image_id in {image.id for image in failing.images}
    assert "山水" in bad.prompt
    stranger = Screens(story, "somebody else")
    assert stranger.ask(batches.find_failure_groups, batch) == []
    assert stranger.ask(batches.find_thumbnails, [batch]) == {batch: []}


# Workers


def test_workers_show_what_they_hold_and_what_failed_in_their_hands(story: Story, screens: Screens) -> None:
    worker_id = beat(story, resident=["mini-zh"], capacity={"mini-zh": 8})
    mine = drawn(story, ImageState.FAILED, count=2)
    drawn(story, ImageState.FAILED, tenant="somebody else")
    job = story.submit(count=2)
    now = story.started(capacity=2)
    story.submit("somebody else")
    ahead = story.claim()
    idle_id = beat(story, name="gpu-2")

    busy, idle = screens.ask(workers.find_workers)
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

    theirs, *own = screens.ask(workers.find_worker_errors)[worker_id]
    assert (theirs.job_id, theirs.code, theirs.model) == (None, "bad", "mini-zh")
    assert [error.job_id for error in own] == [
        story.rows("SELECT job_id FROM images WHERE id = :i", i=mine[0])[0][0]
    ] * 2
    assert len(screens.ask(workers.find_worker_errors, each=1)[worker_id]) == 1


# Admin


def test_an_administrator_sees_keys_without_secrets_and_models(story: Story, screens: Screens) -> None:
    with transaction(story.database) as connection:
        old, new = (
            create_key(connection, screens.tenant_id, name, [Scope.VIEWER], "pepper") for name in ("old", "new")
        )
        create_key(connection, story.tenant("somebody else"), "theirs", [Scope.ADMIN], "pepper")
        revoke_key(connection, screens.tenant_id, old.id)
    beat(story, resident=["mini-zh"])
    shown = screens.ask(admin.find_keys)
    assert [(key.name, list(key.scopes), key.revoked_at is None) for key in shown] == [
        ("new", ["viewer"], True),
        ("old", ["viewer"], False),
    ]
    assert new.secret not in str(shown)
    models = {model.name: model for model in screens.ask(find_models, CATALOG, "mini-zh")}
    assert models["mini-zh"].availability.resident_on == ["gpu-1"]
    assert models["zh-v0"].licence_accepted_at is None
