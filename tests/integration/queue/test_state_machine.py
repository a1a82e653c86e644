"""Hypothesis plays the farm on a real Postgres: whatever the order, a hand changes only what is its own to change.

Every step is followed by `check`: of all the rows, only those the step was permitted to change have changed, nothing
that had ended has, and the books balance. A *hand* is a microbatch as its worker remembers it: for ever, whether its
lease is still held or long lost, so that any of them may come back and act again. `bucket` stands for the image store.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from common.db import transaction
from common.enums import TERMINAL_IMAGE, TERMINAL_JOB, ImageState, JobState, Tier
from common.queue import claim as claims
from common.queue import jobs, lanes, leases, orphans, tiers
from common.queue.claim import Microbatch
from common.queue.lanes import EXACT
from common.queue.leases import MAX_ATTEMPTS, Outcome
from common.usage import ledger
from common.usage.ledger import USED
from tests.support.stories import Story

Row = dict[str, Any]
Permit = Callable[[Row], bool]

LARGEST = 6  # images of a microbatch
ALL_STORED = ["stored"] * LARGEST
ENOUGH = settings(
    max_examples=50,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # to shrink thirty steps on a real database takes minutes
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

recent = st.integers(0, 9)  # which of what was made lately; 0 is the newest
outcomes = st.lists(
    st.sampled_from(["stored", "stored", "flagged", "failed", "again", "forgotten"]),
    min_size=LARGEST,
    max_size=LARGEST,
)

ALL = text(f"""
    SELECT (SELECT json_agg(r) FROM (
               SELECT id, tenant_id, state, count, open, failed, error_code, finished_at FROM jobs) AS r),
           (SELECT json_agg(images) FROM images), (SELECT json_agg(leases) FROM leases),
           (SELECT json_agg(lanes) FROM {EXACT} AS lanes),
           (SELECT json_agg(used) FROM (
               SELECT tenant_id AS id, sum(images) AS images, sum(gpu_ms) AS gpu_ms, sum(bytes) AS bytes
               FROM {USED} AS used GROUP BY tenant_id) AS used)
""")


class Seen:
    """All rows of a moment, by id."""

    def __init__(self, connection: Connection) -> None:
        tables = [{row["id"]: row for row in rows or []} for rows in connection.execute(ALL).one()]
        self.jobs, self.images, self.leases, self.lanes, self.used = tables

    def of(self, hand: Microbatch) -> Row:
        return self.leases[str(hand.lease_id)]

    def visible(self) -> set[str]:
        return {image["key"] for image in self.images.values() if image["state"] == ImageState.STORED}

    def waiting(self) -> list[Row]:
        return [i for i in self.images.values() if is_open(i) and i["lease_id"] is None and i["not_before"] is None]


def is_open(image: Row) -> bool:
    return image["state"] not in TERMINAL_IMAGE


def is_waiting(image: Row) -> bool:
    return is_open(image) and image["lease_id"] is None


def held_by(*hands: Microbatch) -> Permit:
    leases = {str(hand.lease_id) for hand in hands}
    return lambda image: image["lease_id"] in leases


def of_job(job: UUID) -> Permit:
    return lambda image: image["job_id"] == str(job)


def nothing(_: Row) -> bool:
    return False


class Farm(RuleBasedStateMachine):
    """No bundle and no precondition: what is drawn must not depend on how two threads raced."""

    def __init__(self, story: Story, observer: Connection, threads: ThreadPoolExecutor) -> None:
        super().__init__()
        self.story, self.observer, self.threads = story, observer, threads
        self.hands: list[Microbatch] = []
        self.submitted: list[UUID] = []
        self.bucket: set[str] = set()
        with transaction(story.database) as connection:
            connection.execute(text("TRUNCATE images, jobs, leases, lanes, lane_changes, usage_entries, usage_days"))
            connection.execute(text("UPDATE tenants SET virtual_time = 0, virtual_start = 0"))
        self.seen = Seen(observer)

    @initialize()
    def opening(self) -> None:
        self.submit(2, "a", Tier.STANDARD, 2, None)
        self.take()

    # What users do

    @rule(
        count=st.integers(1, 4),
        tenant=st.sampled_from("ab"),
        tier=st.sampled_from(Tier),
        steps=st.integers(2, 3),
        expires_after_s=st.sampled_from([None, 3600]),
    )
    def submit(self, count: int, tenant: str, tier: Tier, steps: int, expires_after_s: float | None) -> None:
        with self.permitted(nothing):
            self.submitted.append(
                self.story.submit(tenant, tier, expires_after_s=expires_after_s, count=count, steps=steps)
            )

    @rule(which=recent)
    def cancel(self, which: int) -> None:
        job = self.job(which)
        had_ended = self.has_ended(job)
        with self.permitted(of_job(job)):
            assert self.story.cancel(job) != had_ended

    @rule(which=recent, tier=st.sampled_from(Tier))
    def change_tier(self, which: int, tier: Tier) -> None:
        """What waits goes to its lane; what is in a hand, or has ended, stays where it is."""
        job, before = self.job(which), self.seen
        if self.has_ended(job):
            return
        with self.permitted(lambda image: of_job(job)(image) and image["lease_id"] is None):
            self.story.change_tier(job, tier)
        for image in filter(of_job(job), self.seen.images.values()):
            lane, old = self.seen.lanes[image["lane_id"]], before.images[image["id"]]
            assert image == {**old, "lane_id": image["lane_id"]}
            assert lane["tier"] == tier if is_waiting(image) else image["lane_id"] == old["lane_id"]

    @rule(which=recent)
    def retry(self, which: int) -> None:
        job = self.job(which)
        if self.has_ended(job):
            with self.permitted(nothing), transaction(self.story.database) as connection:
                tenant = self.story.job(job).tenant_id
                self.submitted.append(jobs.retry(connection, job, tenant).id)

    @rule(which=recent, half_done=st.booleans())
    def miss_the_deadline(self, which: int, half_done: bool) -> None:
        job = self.job(which)
        if half_done and (hand := self.take(1)):
            self.begin(hand)
            with self.permitted(held_by(hand)):
                self.finish(hand, ALL_STORED)
            job = hand.images[0].job_id
        had_ended = self.has_ended(job)
        with self.story.database.begin() as connection:
            connection.execute(text("UPDATE jobs SET deadline = now() WHERE id = :j"), {"j": job})
        with self.permitted(of_job(job)):
            assert self.story.expire() == ([] if had_ended else [job])
        if not had_ended:
            assert self.seen.jobs[str(job)]["error_code"] == "expired"

    # What workers do

    @rule(capacity=st.integers(1, LARGEST), lower_tier=st.booleans())
    def claim(self, capacity: int, lower_tier: bool) -> None:
        self.take(capacity, lower_tier)

    def take(self, capacity: int = LARGEST, lower_tier: bool = False) -> Microbatch | None:
        before = self.seen
        with self.permitted(lambda image: image in before.waiting()):
            hand = self.story.claim(capacity=capacity, lower_tier=lower_tier)
        assert (hand is not None) == bool(before.waiting())
        if hand is None:
            return None
        suspects = [before.images[str(image.id)]["error_code"] == "worker_lost" for image in hand.images]
        assert suspects == [True] if hand.suspect else 1 <= len(suspects) <= capacity and not any(suspects)
        self.hands.append(hand)
        return hand

    @rule(capacity=st.integers(2, LARGEST), ends=outcomes)
    def render(self, capacity: int, ends: list[str]) -> None:
        """All goes well, but for some images."""
        self.submit(3, "b", Tier.STANDARD, 2, None)
        hand = self.take(capacity)
        self.begin(hand)
        with self.permitted(held_by(hand)):
            self.finish(hand, ends)
        self.clean()

    @rule(which=recent)
    def start(self, which: int) -> None:
        self.begin(self.hand(which))

    def begin(self, hand: Microbatch) -> None:
        with self.permitted(held_by(hand)):
            started = self.story.start(hand)
        assert started <= {image.id for image in hand.images if self.seen.images[str(image.id)]["state"] == "running"}

    @rule(which=recent, ends=outcomes, begins=st.booleans(), twice=st.booleans(), cleans=st.booleans())
    def publish(self, which: int, ends: list[str], begins: bool, twice: bool, cleans: bool) -> None:
        hand = self.hand(which)
        if begins:
            self.begin(hand)
        with self.permitted(held_by(hand)):
            published = self.finish(hand, ends)
        if twice:  # the answer to the COMMIT was cut off
            with self.permitted(nothing):
                assert self.finish(hand, ends) == published
        if cleans:
            self.clean()

    @rule(which=recent)
    def release(self, which: int) -> None:
        hand = self.hand(which)
        with self.permitted(held_by(hand)):
            self.story.release(hand)

    @rule(which=recent)
    def renew(self, which: int) -> None:
        hand = self.hand(which)
        with self.permitted(nothing):
            renewed = self.story.renew(hand)
        mine = {UUID(i["id"]) for i in self.seen.images.values() if held_by(hand)(i) and is_open(i)}
        assert renewed == ({} if self.seen.of(hand)["ended_at"] else {hand.lease_id: mine})

    # What goes wrong

    @rule(which=recent, uploads=st.booleans())
    def die(self, which: int, uploads: bool) -> None:
        hand = self.hand(which)
        if uploads:
            self.begin(hand)
            if not self.seen.of(hand)["ended_at"]:
                self.upload(self.outcomes(hand, ALL_STORED))
        with self.permitted(held_by(hand)):
            self.story.die(hand)
        if uploads:
            self.heal()

    @rule(which=recent, ends=outcomes)
    def die_and_come_back(self, which: int, ends: list[str]) -> None:
        """A worker freezes beyond its lease, others take over, and it wakes up in the middle of that."""
        zombie = self.hand(which)
        self.begin(zombie)
        with self.permitted(held_by(zombie)):
            self.story.die(zombie)
        self.ready()
        heirs = [heir for _ in zombie.images if (heir := self.take())]
        for heir in heirs[::2]:  # the others have only claimed
            self.begin(heir)
        with self.permitted(nothing):
            self.finish(zombie, ends)
            self.story.release(zombie)
            assert self.story.renew(zombie) == {}
            assert self.story.start(zombie) == frozenset()
        for heir in heirs:
            with self.permitted(held_by(heir)):
                self.finish(heir, ALL_STORED)

    @rule(ends=st.lists(st.sampled_from(["die", "again"]), min_size=4, max_size=4))
    def fail_again_and_again(self, ends: list[str]) -> None:
        """An image fails, or takes its worker with it, until its attempts are used up; others wait beside it."""
        self.submit(1, "a", Tier.INTERACTIVE, 2, None)
        for end in ends:
            self.submit(1, "b", Tier.BULK, 2, None)
            hand = self.take()
            self.begin(hand)
            with self.permitted(held_by(hand)):
                self.story.die(hand) if end == "die" else self.finish(hand, [end] * LARGEST)
            self.ready()

    @rule(ends=outcomes)
    def two_publish_the_last_images_at_once(self, ends: list[str]) -> None:
        self.submit(2, "a", Tier.INTERACTIVE, 2, None)
        hands = [hand for _ in range(2) if (hand := self.take(1))]
        for hand in hands:
            self.begin(hand)
        with self.permitted(held_by(*hands)):
            self.at_once(*(lambda hand=hand: self.finish(hand, ends) for hand in hands))

    @rule(which=recent, tier=st.sampled_from(Tier), capacity=st.integers(1, LARGEST))
    def change_tier_while_it_is_claimed(self, which: int, tier: Tier, capacity: int) -> None:
        job, hands = self.job(which), list[Microbatch | None]()
        if self.has_ended(job):
            return
        with self.permitted(is_waiting):
            self.at_once(
                lambda: self.story.change_tier(job, tier),
                lambda: hands.append(self.story.claim(capacity=capacity)),
            )
        self.hands += filter(None, hands)

    @rule(which=recent, ends=outcomes)
    def cancel_while_it_finishes(self, which: int, ends: list[str]) -> None:
        hand = self.hand(which)
        self.begin(hand)
        job = hand.images[0].job_id
        with self.permitted(lambda image: held_by(hand)(image) or of_job(job)(image)):
            self.at_once(lambda: self.finish(hand, ends), lambda: self.story.cancel(job))

    # What the sweep does

    @rule()
    def ready(self) -> None:
        with self.permitted(lambda image: image["not_before"] is not None):
            self.story.skip_backoff()

    @rule()
    def count(self) -> None:
        with self.permitted(nothing):
            self.story.count_ended()
            with transaction(self.story.database) as connection:
                ledger.fold(connection)

    @rule()
    def clean(self) -> None:
        with self.permitted(nothing), transaction(self.story.database) as connection:
            leftovers = orphans.orphaned_keys(connection, grace_s=-1)
            self.bucket -= {key for keys in leftovers.values() for key in keys}
            orphans.mark_cleaned(connection, list(leftovers))

    @rule()
    def heal(self) -> None:
        """When all leases have ended, the store holds what is visible and nothing else."""
        for hand in self.hands:
            if self.seen.of(hand)["ended_at"] is None:
                with self.permitted(held_by(hand)):
                    self.story.die(hand)
        self.clean()
        assert self.bucket == self.seen.visible()

    # Helpers

    def hand(self, which: int) -> Microbatch:
        """Mostly one whose lease is open, if there is one."""
        held = [hand for hand in self.hands if self.seen.of(hand)["ended_at"] is None]
        pool = held if held and which < 7 else self.hands
        return pool[-1 - which % len(pool)]

    def job(self, which: int) -> UUID:
        return self.submitted[-1 - which % len(self.submitted)]

    def has_ended(self, job: UUID) -> bool:
        return self.seen.jobs[str(job)]["state"] in TERMINAL_JOB

    def outcomes(self, hand: Microbatch, ends: Sequence[str]) -> list[Outcome]:
        made = {
            "stored": lambda image: self.story.outcome(image, hand.lease_id),
            "flagged": lambda image: Outcome(image.id, ImageState.FLAGGED),
            "failed": lambda image: Outcome(image.id, ImageState.FAILED, error_code="refused"),
            "again": lambda image: Outcome(image.id, ImageState.FAILED, error_code="out_of_memory", retryable=True),
        }
        pairs = zip(hand.images, ends, strict=False)
        return [made[end](image) for image, end in pairs if end != "forgotten"]

    def upload(self, named: Sequence[Outcome]) -> None:
        self.bucket |= {outcome.key for outcome in named if outcome.key}

    def finish(self, hand: Microbatch, ends: Sequence[str]) -> frozenset[UUID]:
        """Bytes first, if it ever started; then publish. Says what is visible by this hand."""
        named = self.outcomes(hand, ends)
        if self.seen.of(hand)["started_at"]:
            self.upload(named)
        with transaction(self.story.database) as connection:
            return leases.publish(connection, hand.lease_id, named).images

    def at_once(self, *acts: Callable[[], object]) -> None:
        for future in [self.threads.submit(act) for act in acts]:
            future.result(20)

    @contextmanager
    def permitted(self, permit: Permit) -> Iterator[None]:
        """What happens here may change open images that `permit` holds for, and add rows."""
        before = self.seen
        yield
        self.seen = Seen(self.observer)
        for old in before.images.values():
            new = self.seen.images[old["id"]]
            assert new == old or (is_open(old) and permit(old))
            if new["state"] != ImageState.CANCELLED:  # which may have followed another change
                assert new["attempts"] - old["attempts"] == counted(old, new)
        for old in before.jobs.values():
            if old["finished_at"]:
                assert self.seen.jobs[old["id"]] == old
        for old in before.leases.values():
            if old["ended_at"]:
                assert self.seen.leases[old["id"]] == {
                    **old,
                    "needs_cleanup": self.seen.leases[old["id"]]["needs_cleanup"],
                }
        self.check()

    def check(self) -> None:
        for job in self.seen.jobs.values():
            check_job(job, [image for image in self.seen.images.values() if image["job_id"] == job["id"]])
        for lane in self.seen.lanes.values():
            assert lane["open"] == sum(is_open(i) for i in self.seen.images.values() if i["lane_id"] == lane["id"])
        for image in self.seen.images.values():
            check_image(image, self.seen.leases.get(image["lease_id"], {}))
        held = [i for lease in self.seen.leases.values() if lease["ended_at"] is None for i in lease["image_ids"]]
        assert len(held) == len(set(held)), "an image in two hands"
        assert self.seen.visible() <= self.bucket
        self.check_usage()

    def check_usage(self) -> None:
        """Each tenant has used what is stored of it; an image here takes a millisecond and has a byte."""
        stored = Counter(
            self.seen.jobs[image["job_id"]]["tenant_id"]
            for image in self.seen.images.values()
            if image["state"] == ImageState.STORED
        )
        assert {row["id"]: (row["images"], row["gpu_ms"], row["bytes"]) for row in self.seen.used.values()} == {
            tenant: (images,) * 3 for tenant, images in stored.items()
        }


def counted(old: Row, new: Row) -> int:
    """By how much the attempts change: by one at a start, and back when the image is released without a pause."""
    if (old["state"], new["state"]) == (ImageState.QUEUED, ImageState.RUNNING):
        return 1
    if (old["state"], new["state"]) == (ImageState.RUNNING, ImageState.QUEUED) and not new["not_before"]:
        return -1
    return 0


def check_job(job: Row, images: list[Row]) -> None:
    states = [image["state"] for image in images]
    assert len(states) == job["count"]
    assert job["open"] == sum(map(is_open, images))
    assert job["failed"] == states.count(ImageState.FAILED)
    if job["state"] == JobState.SUCCEEDED:
        assert set(states) <= {ImageState.STORED, ImageState.FLAGGED}
    elif job["state"] == JobState.FAILED:
        assert job["error_code"] in {i["error_code"] for i in images if i["state"] == ImageState.FAILED}
    elif job["state"] == JobState.QUEUED:
        assert set(states) == {ImageState.QUEUED}
    assert (job["open"] > 0) == (job["state"] in (JobState.QUEUED, JobState.RUNNING))


def check_image(image: Row, lease: Row) -> None:
    assert 0 <= image["attempts"] <= MAX_ATTEMPTS
    if is_open(image) and image["lease_id"]:
        assert lease["ended_at"] is None, "nobody will ever end this image"
        assert image["id"] in lease["image_ids"]
    if image["state"] == ImageState.RUNNING:
        assert lease["started_at"]
        assert image["attempts"] >= 1
    if image["state"] == ImageState.STORED:
        assert image["lease_id"] in image["key"]
        assert lease["outcome"] == "published"
    if image["state"] == ImageState.FAILED and image["error_code"] == "worker_lost":
        assert image["attempts"] == MAX_ATTEMPTS


@pytest.fixture
def farm(database: Engine) -> Iterator[Callable[[], Farm]]:
    engine = create_engine(database.url, connect_args={"options": "-c lock_timeout=10000"})  # no ping: twice as fast
    with engine.connect() as connection, ThreadPoolExecutor(2) as threads:
        observer = connection.execution_options(isolation_level="AUTOCOMMIT")
        yield lambda: Farm(Story(engine), observer, threads)
    engine.dispose()


@pytest.mark.timeout(400)  # many short stories: as long as its machine is slow
def test_whatever_happens_in_whatever_order_the_promises_hold(farm: Callable[[], Farm]) -> None:
    run_state_machine_as_test(farm, settings=ENOUGH)


GUARDS = [
    pytest.param(leases, "PUBLISH", " AND images.lease_id = :lease", "", id="the fence of publish"),
    pytest.param(leases, "PUBLISH", " AND images.state = 'running'", "", id="the state that publish leaves"),
    pytest.param(leases, "PUBLISH", "jobs.open - tally.images", "jobs.open - 1", id="what settles a job"),
    pytest.param(leases, "PUBLISH", "lanes.open - lane_tally.ended", "lanes.open - 1", id="what a lane counts"),
    pytest.param(leases, "PUBLISH", "SELECT lane_id, ended,", "SELECT lane_id, 1,", id="what a lane counts later"),
    pytest.param(lanes, "COUNT", "lanes.open - tally.ended", "lanes.open - 1", id="what a lane has counted"),
    pytest.param(leases, "PUBLISH", "WHERE changed.state = 'stored'", "", id="what costs nothing"),
    pytest.param(ledger, "FOLD", "days.images + excluded.images", "excluded.images", id="what a day has counted"),
    pytest.param(leases, "PUBLISH", "attempts < :attempts", "attempts <= :attempts", id="three attempts"),
    pytest.param(leases, "RELEASE", "AND lease_id = :lease AND", "AND", id="the fence of release"),
    pytest.param(leases, "START_LEASE", " AND ended_at IS NULL", "", id="the end of a lease"),
    pytest.param(leases, "RESCUE", "attempts >= :attempts", "attempts > :attempts", id="three deaths"),
    pytest.param(claims, "CLAIM", "WHERE NOT EXISTS (SELECT FROM suspect_alone)", "", id="a suspect alone"),
    pytest.param(orphans, "ORPHANED_KEYS", "state = 'stored'", "state = 'queued'", id="what an image shows"),
    pytest.param(jobs, "CANCEL", "AND images.state IN ('queued', 'running')", "", id="terminal is final"),
    pytest.param(tiers, "MOVE", " AND images.lease_id IS NULL", "", id="what is leased keeps its lane"),
    pytest.param(tiers, "MOVE", "(source, -1), (target, 1)", "(source, -1)", id="what a lane takes over"),
]
of_guards = pytest.mark.parametrize(("module", "statement", "guard", "instead"), GUARDS)


@of_guards
def test_a_guard_can_be_taken_out(module: Any, statement: str, guard: str, instead: str) -> None:
    """So that the long tests below still break what they say."""
    assert guard in str(getattr(module, statement))


@pytest.mark.long
@of_guards
def test_a_guard_that_is_taken_out_is_missed(
    farm: Callable[[], Farm], monkeypatch: pytest.MonkeyPatch, module: Any, statement: str, guard: str, instead: str
) -> None:
    sql = str(getattr(module, statement))
    monkeypatch.setattr(module, statement, text(sql.replace(guard, instead)))
    with pytest.raises((AssertionError, DBAPIError, Flaky)):  # flaky: two threads raced, and not again
        run_state_machine_as_test(farm, settings=settings(ENOUGH, max_examples=500))  # ends at the first
