"""Images pass from lane to lease to storage; a hand that lost its lease changes nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from common.accounts import tenants
from common.db import new_id, transaction
from common.enums import ImageState, JobState, Tier
from common.queue import claim as claims
from common.queue import jobs, leases, orphans, workers
from common.queue.claim import Image, Microbatch
from common.queue.leases import Outcome
from common.storage import image_key
from tests.support.stories import Story


def test_claim_start_publish(story: Story) -> None:
    job = story.submit(count=2)
    microbatch = story.claim()
    assert [image.index for image in microbatch.images] == [0, 1]
    assert story.job(job).state == JobState.QUEUED  # claimed ahead is not rendering
    assert story.start(microbatch) == {image.id for image in microbatch.images}
    assert story.job(job).state == JobState.RUNNING
    published = story.publish(microbatch)
    assert published.ended_jobs == (job,)
    assert story.job(job).state == JobState.SUCCEEDED
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.STORED, 1)}
    assert story.lane_counts() == {"standard": 0}


def test_publishing_again_after_an_unclear_commit_says_the_same(story: Story) -> None:
    job = story.submit(count=2)
    microbatch = story.started()
    first, second = story.publish(microbatch), story.publish(microbatch)
    assert first.images == second.images == {image.id for image in microbatch.images}
    assert second.ended_jobs == ()
    assert story.job(job).open == 0


def test_a_microbatch_holds_compatible_images_of_several_tenants_up_to_its_capacity(story: Story) -> None:
    for tenant in ("one", "two", "three"):
        story.submit(tenant=tenant, count=3)
    story.submit(tenant="one", steps=3)
    assert len({image.job_id for image in story.claim(capacity=8).images}) == 3
    rest = [story.claim(capacity=8), story.claim(capacity=8)]
    assert sorted(len(microbatch.images) for microbatch in rest) == [1, 1]
    assert rest[0].images[0].recipe.compatibility != rest[1].images[0].recipe.compatibility


def test_two_workers_never_hold_the_same_image(story: Story) -> None:
    story.submit(count=60)
    with ThreadPoolExecutor(6) as pool:
        taken = [image.id for m in pool.map(lambda _: story.claim(capacity=4), range(15)) if m for image in m.images]
    while microbatch := story.claim(capacity=4):
        taken += [image.id for image in microbatch.images]
    assert len(taken) == len(set(taken)) == 60


def test_a_higher_tier_goes_first_and_the_lowest_gets_its_turn(story: Story) -> None:
    bulk = story.submit(tier=Tier.BULK)
    interactive = story.submit(tier=Tier.INTERACTIVE, steps=3)
    standard = story.submit(tier=Tier.STANDARD, steps=4)
    order = [story.claim(lower_tier=turn).images[0].job_id for turn in (True, False, False)]
    assert order == [bulk, interactive, standard]


def test_tenants_share_by_weight_and_nobody_waits_behind_a_heap(story: Story) -> None:
    story.tenant("heap", weight=1)
    story.tenant("double", weight=2)
    for steps, tenant in ((2, "heap"), (3, "double")):
        for _ in range(8):
            story.submit(tenant=tenant, count=30, steps=steps)
    owners = [story.owner(story.claim(capacity=4)) for _ in range(30)]
    assert owners.count("double") == pytest.approx(20, abs=1)
    late = story.submit(tenant="late", steps=4)
    assert late in {story.claim(capacity=4).images[0].job_id for _ in range(2)}


def test_a_tenant_that_comes_back_does_not_catch_up(story: Story) -> None:
    story.submit(tenant="idle", count=1)
    story.claim()
    for _ in range(4):
        story.submit(tenant="busy", count=40, steps=3)
    for _ in range(20):
        story.claim(capacity=4)
    story.submit(tenant="idle", count=40)
    owners = [story.owner(story.claim(capacity=4)) for _ in range(10)]
    assert owners.count("busy") >= 4


def test_a_suspended_tenant_gives_nothing_and_catches_up_on_nothing(story: Story) -> None:
    for tenant, steps in (("away", 2), ("busy", 3)):
        for _ in range(4):
            story.submit(tenant=tenant, count=40, steps=steps)
    with transaction(story.database) as connection:
        tenants.suspend(connection, story.tenant("away"))
    assert {story.owner(story.claim(capacity=4)) for _ in range(20)} == {"busy"}
    with transaction(story.database) as connection:
        tenants.resume(connection, story.tenant("away"))
    owners = [story.owner(story.claim(capacity=4)) for _ in range(10)]
    assert owners.count("away") == pytest.approx(5, abs=1)


def test_a_resident_model_is_kept_until_another_has_waited_too_long(story: Story) -> None:
    other = story.submit(model="zh-v0")
    here = story.submit(model="mini-zh")
    both = {"mini-zh": 4, "zh-v0": 4}
    kept = story.claim(capacities=both, resident=("mini-zh",), patience_s=30)
    assert kept.images[0].job_id == here
    story.release(kept)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = now() - interval '1 minute'"))
    assert story.claim(capacities=both, resident=("mini-zh",), patience_s=30).images[0].job_id == other


def test_work_for_a_model_that_the_worker_does_not_serve_is_left_alone(story: Story) -> None:
    story.submit(model="zh-v0")
    assert story.claim(capacities={"mini-zh": 4}) is None


def test_giving_back_counts_no_attempt(story: Story) -> None:
    job = story.submit(count=2)
    story.release(story.claim())
    story.release(story.started())
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}
    assert len(story.claim().images) == 2


def test_an_image_that_the_outcomes_forgot_goes_back(story: Story) -> None:
    job = story.submit(count=2)
    microbatch = story.started()
    story.publish(replace(microbatch, images=microbatch.images[:1]))
    assert [image.state for image in story.images(job)] == [ImageState.STORED, ImageState.QUEUED]
    assert story.job(job).state == JobState.RUNNING


def test_a_failure_that_can_be_cured_is_tried_three_times(story: Story) -> None:
    job = story.submit(count=1)
    for attempt in (1, 2, 3):
        story.publish(story.started(), state=ImageState.FAILED, error_code="out_of_memory", retryable=True)
        image = story.images(job)[0]
        assert image.attempts == attempt
        assert (image.state == ImageState.QUEUED and image.not_before is not None) == (attempt < 3)
        assert story.claim() is None  # backing off, or ended
        story.skip_backoff()
    assert (story.job(job).state, story.job(job).error_code) == (JobState.FAILED, "out_of_memory")


def test_a_failure_that_cannot_be_cured_is_final_and_spares_its_neighbours(story: Story) -> None:
    job = story.submit(count=2)
    microbatch = story.started()
    good, bad = (story.outcome(image) for image in microbatch.images)
    bad = Outcome(bad.image_id, ImageState.FAILED, error_code="prompt_too_long", error_message="Too long.")
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, [good, bad])
    assert [image.state for image in story.images(job)] == [ImageState.STORED, ImageState.FAILED]
    assert (story.job(job).state, story.job(job).error_message) == (JobState.FAILED, "Too long.")


def test_flagged_pictures_end_a_job_without_a_key(story: Story) -> None:
    job = story.submit(count=1)
    story.publish(story.started(), state=ImageState.FLAGGED)
    assert story.job(job).state == JobState.SUCCEEDED
    assert story.images(job)[0].key is None


def test_an_expired_lease_is_rescued_and_its_hand_changes_nothing_more(story: Story) -> None:
    job = story.submit(count=2)
    zombie = story.started(lease_s=-1)
    rescued = story.rescue()
    assert (rescued.leases, rescued.images) == ((zombie.lease_id,), 2)
    assert story.renew(zombie) == {}
    assert story.publish(zombie).images == frozenset()
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 1)}
    story.skip_backoff()
    heirs = [story.started(), story.started()]
    assert story.publish(zombie).images == frozenset()
    assert [len(story.publish(heir).images) for heir in heirs] == [1, 1]
    for heir, image in zip(heirs, story.images(job), strict=True):
        assert str(heir.lease_id) in image.key


def test_a_lease_that_never_started_is_rescued_uncounted(story: Story) -> None:
    job = story.submit(count=1)
    story.claim(lease_s=-1)
    story.rescue()
    image = story.images(job)[0]
    assert (image.state, image.attempts, image.not_before) == (ImageState.QUEUED, 0, None)


def test_the_third_death_is_the_last(story: Story) -> None:
    job = story.submit(count=1)
    for _ in range(3):
        story.started(lease_s=-1)
        rescued = story.rescue()
        story.skip_backoff()
    assert rescued.ended_jobs == (job,)
    assert (story.job(job).state, story.job(job).error_code) == (JobState.FAILED, "worker_lost")
    assert story.lane_counts() == {"standard": 0}


def test_nothing_is_rescued_just_after_postgres_started(story: Story) -> None:
    story.submit(count=1)
    story.started(lease_s=-1)
    with transaction(story.database) as connection:
        assert leases.expired(connection, lease_s=1e6) == []


def test_a_cancelled_job_is_unwanted_and_never_published(story: Story) -> None:
    job = story.submit(count=1)
    other = story.submit(count=1)
    microbatch = story.started()
    with transaction(story.database) as connection:
        jobs.cancel(connection, job)
    assert story.renew(microbatch)[microbatch.lease_id] == {story.images(other)[0].id}
    published = story.publish(microbatch)
    assert published.images == {story.images(other)[0].id}
    assert story.job(job).state == JobState.CANCELLED
    assert story.images(job)[0].key is None


def test_a_job_cancelled_before_its_lease_starts_is_not_started(story: Story) -> None:
    job = story.submit(count=1)
    microbatch = story.claim()
    with transaction(story.database) as connection:
        jobs.cancel(connection, job)
    assert story.start(microbatch) == frozenset()
    assert story.job(job).state == JobState.CANCELLED


def test_two_workers_that_publish_the_last_images_at_once_end_the_job(story: Story) -> None:
    for _ in range(20):
        job = story.submit(count=2)
        halves = [story.started(capacity=1), story.started(capacity=1)]
        with ThreadPoolExecutor(2) as pool:
            ended = [p.ended_jobs for p in pool.map(story.publish, halves)]
        assert sorted(ended) == [(), (job,)]
        assert story.job(job).state == JobState.SUCCEEDED


def test_mixed_microbatches_of_many_workers_never_deadlock(story: Story) -> None:
    """Publish, cancel and rescue at once over jobs that share microbatches: all end, no counter is off."""
    ids = [story.submit(tenant=f"t{n % 3}", count=6) for n in range(20)]

    def work(_: int) -> None:
        while microbatch := story.claim(capacity=5):
            story.start(microbatch)
            story.publish(microbatch)

    def cancel(job: object) -> None:
        with transaction(story.database) as connection:
            jobs.cancel(connection, job)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda act: act[0](act[1]), [(work, 0)] * 4 + [(cancel, job) for job in ids[::4]]))
    while microbatch := story.claim():  # what SKIP LOCKED left behind
        story.start(microbatch)
        story.publish(microbatch)
    assert {story.job(job).open for job in ids} == {0}
    assert set(story.lane_counts().values()) == {0}


def test_workers_that_idle_beside_waiting_work_are_found(story: Story) -> None:
    story.submit()
    with transaction(story.database) as connection:
        assert claims.models_with_idle_workers(connection, beat_s=5) == []
        workers.heartbeat(connection, workers.Worker(story.worker_id, "w", {}, ["mini-zh"]), ready=True)
        assert claims.models_with_idle_workers(connection, beat_s=5) == ["mini-zh"]
    story.claim()
    story.submit()
    with transaction(story.database) as connection:
        assert claims.models_with_idle_workers(connection, beat_s=5) == []  # it holds a lease


def test_a_drained_worker_stays_so_until_it_is_resumed(story: Story) -> None:
    worker = workers.Worker(new_id(), "w", {}, ["mini-zh"])
    with transaction(story.database) as connection:
        assert workers.heartbeat(connection, worker, ready=False).state == "starting"
        assert workers.heartbeat(connection, worker, ready=True).state == "ready"
        workers.drain(connection, worker.id, "by hand")
        assert workers.heartbeat(connection, worker, ready=True).state == "draining"
        workers.resume(connection, worker.id)
        assert workers.heartbeat(connection, worker, ready=True).state == "ready"
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 minute'"))
        assert workers.prune(connection, silence_s=45) == [worker.id]
        assert workers.heartbeat(connection, worker, ready=True).state == "ready"  # only slow, not dead


def test_the_first_recorded_revision_is_everybodys(story: Story) -> None:
    with transaction(story.database) as connection:
        assert workers.recorded_revision(connection, "zh-v0", "o/n") is None
        assert workers.record_revision(connection, "zh-v0", "o/n", "aaa") == "aaa"
        assert workers.record_revision(connection, "zh-v0", "o/n", "bbb") == "aaa"
        assert workers.record_revision(connection, "zh-v0", "o/other", "ccc") == "ccc"


def test_what_was_lost_with_a_worker_is_rendered_alone(story: Story) -> None:
    """The poison takes nobody along twice: neither those that died with it nor those that never met it."""
    lost = story.submit(count=3)
    story.die(story.started())
    fresh = story.submit(tenant="other", count=3)
    assert {image.job_id for image in story.claim(capacity=1).images} == {fresh}  # the others back off
    story.skip_backoff()
    microbatches = [story.started() for _ in range(4)]
    company = [m for m in microbatches if len(m.images) > 1]
    assert [{image.job_id for image in microbatch.images} for microbatch in company] == [{fresh}]
    alone = [m for m in microbatches if m not in company]
    assert [(image.job_id, image.index) for m in alone for image in m.images] == [(lost, 0), (lost, 1), (lost, 2)]
    assert [microbatch.suspect for microbatch in microbatches] == [microbatch in alone for microbatch in microbatches]
    for microbatch in alone:
        story.publish(microbatch)
    assert story.job(lost).state == JobState.SUCCEEDED


def test_suspects_are_left_out_where_others_come_first(story: Story) -> None:
    fresh, lost = story.submit(count=2), story.submit(tenant="other", count=2)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET error_code = 'worker_lost' WHERE job_id = :j"), {"j": lost})
        connection.execute(
            text("UPDATE images SET error_code = 'worker_lost' WHERE job_id = :j AND index = 1"), {"j": fresh}
        )
    sizes = [len(story.claim().images) for _ in range(4)]
    assert sizes == [1, 1, 1, 1]
    assert story.claim() is None


def test_a_suspect_that_somebody_else_takes_this_moment_keeps_nobody_idle(story: Story) -> None:
    story.submit(count=1)
    story.die(story.started())
    story.skip_backoff()
    fresh = story.submit(count=2)
    with story.database.begin() as connection:
        connection.execute(text("SELECT id FROM images WHERE error_code = 'worker_lost' FOR NO KEY UPDATE"))
        assert {image.job_id for image in story.claim().images} == {fresh}


def test_suspicion_outlives_what_proves_nothing_and_ends_with_another_error(story: Story) -> None:
    job = story.submit(count=2)
    story.die(story.started())
    story.skip_backoff()
    story.release(story.started())
    story.die(story.claim())  # it never started
    assert len(story.claim().images) == 1
    story.publish(story.started(), state=ImageState.FAILED, error_code="out_of_memory", retryable=True)
    story.skip_backoff()
    assert [image.error_code for image in story.images(job)] == ["worker_lost", "out_of_memory"]
    assert not story.claim().suspect


def test_the_pause_before_the_next_attempt_doubles_and_varies(story: Story) -> None:
    job = story.submit(count=8)
    for shortest, longest in ((1, 3), (2, 6)):
        story.publish(story.started(), state=ImageState.FAILED, error_code="out_of_memory", retryable=True)
        with story.database.connect() as connection:
            ended_at = connection.execute(text("SELECT max(ended_at) FROM leases")).scalar_one()
        pauses = [(image.not_before - ended_at).total_seconds() for image in story.images(job)]
        assert shortest <= min(pauses) < max(pauses) <= longest
        story.skip_backoff()


def leftover(microbatch: Microbatch, *images: Image) -> dict[UUID, set[str]]:
    return {microbatch.lease_id: {image_key(i.job_id, i.index, microbatch.lease_id, "png") for i in images}}


def leftovers(story: Story) -> dict[UUID, set[str]]:
    return {lease: set(keys) for lease, keys in story.leftovers().items()}


def test_a_lease_that_published_everything_or_never_started_leaves_nothing_over(story: Story) -> None:
    story.submit(count=4)
    story.publish(story.started(capacity=1))
    story.publish(again := story.started(capacity=1))
    story.publish(again)
    story.release(story.claim(capacity=1))
    story.die(story.claim(capacity=1))
    story.claim()
    assert leftovers(story) == {}


def test_what_a_dead_lease_may_have_stored_can_be_named(story: Story) -> None:
    story.submit(count=2)
    story.submit(tenant="other", count=1)
    lost = story.started()
    assert leftovers(story) == {}  # it lives
    story.die(lost)
    assert leftovers(story) == leftover(lost, *lost.images)
    assert story.leftovers(grace_s=60) == {}  # it may still be uploading
    story.skip_backoff()
    story.publish(story.started())  # an heir stored one: under a key of its own
    assert leftovers(story) == leftover(lost, *lost.images)
    with transaction(story.database) as connection:
        orphans.mark_cleaned(connection, [lost.lease_id])
    assert leftovers(story) == {}
    story.publish(lost)  # it was frozen, uploads late, and publishes in vain
    assert leftovers(story) == leftover(lost, *lost.images)


def test_leftovers_never_name_what_an_image_shows(story: Story) -> None:
    story.submit(count=2)
    cancelled = story.submit(count=1)
    microbatch = story.started()
    story.cancel(cancelled)
    story.publish(microbatch)
    assert leftovers(story) == leftover(microbatch, microbatch.images[2])
    with transaction(story.database) as connection:
        orphans.mark_cleaned(connection, [microbatch.lease_id])
    given_back = story.submit(count=1)
    started = story.started()
    story.release(started)
    assert leftovers(story) == leftover(started, *started.images)
    assert story.images(given_back)[0].state == ImageState.QUEUED


def test_a_beat_tells_the_time_of_the_database(story: Story) -> None:
    with transaction(story.database) as connection:
        before = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        heard = workers.heartbeat(connection, workers.Worker(new_id(), "w", {}, []), ready=True)
        after = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    assert before < heard.now < after
