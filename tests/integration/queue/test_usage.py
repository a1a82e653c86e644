"""The ledger of usage: what is stored counts once, for whom it was rendered, and nothing else does."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

from sqlalchemy import text

from common.batches import lifecycle as batches
from common.batches import retries
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, Tier
from common.queue import jobs, leases
from common.queue.claim import Microbatch
from common.queue.leases import Outcome
from common.usage import ledger
from common.usage.ledger import USED
from tests.support.batch_stories import PLAN, BatchStory
from tests.support.stories import Story
from tests.support.workers import until_blocked

TOTALS = f"""
    SELECT tenants.name, model, tier, sum(images)::int AS images, sum(gpu_ms)::int AS gpu_ms,
           sum(pixels)::int AS pixels, sum(used.bytes)::int AS bytes
    FROM {USED} AS used JOIN tenants ON tenants.id = tenant_id GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
SUM = f"SELECT coalesce(sum(images), 0)::int AS images FROM {USED} AS used"


def used(story: Story) -> dict[str, tuple[int, ...]]:
    """By tenant: images, milliseconds, pixels, bytes."""
    return {row.name: (row.images, row.gpu_ms, row.pixels, row.bytes) for row in story.rows(TOTALS)}


def fold(story: Story) -> int:
    with transaction(story.database) as connection:
        return ledger.fold(connection)


def stored(story: Story, microbatch: Microbatch, render_ms: int = 100) -> list[Outcome]:
    """All of it, each of 1,000 bytes."""
    outcomes = (story.outcome(image, microbatch.lease_id) for image in microbatch.images)
    return [replace(outcome, bytes=1000, render_ms=render_ms) for outcome in outcomes]


def publish(story: Story, microbatch: Microbatch, outcomes: list[Outcome]) -> None:
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, outcomes)


def test_two_tenants_of_a_microbatch_pay_for_what_each_of_them_got(story: Story) -> None:
    """A flagged image, one that failed before it was stored, and one whose first worker was lost."""
    story.submit("红", width=64, height=64)
    lost = story.started(capacity=1)
    story.die(lost)
    assert used(story) == {}, "a lost lease costs nothing"

    for tenant in ("红", "黄"):
        story.submit(tenant, count=2, width=64, height=64)
    shared = story.started(capacity=4)
    red = {image.id for image in shared.images if owner(story, image.job_id) == "红"}
    of_red = [outcome for outcome in stored(story, shared) if outcome.image_id in red]
    of_yellow = [outcome for outcome in stored(story, shared) if outcome.image_id not in red]
    assert (len(of_red), len(of_yellow)) == (2, 2)
    flagged = Outcome(of_red[0].image_id, ImageState.FLAGGED, render_ms=100, safety_score=0.1)
    failed = Outcome(
        of_yellow[0].image_id, ImageState.FAILED, error_code="render_failed", error_message="No.", retryable=True
    )
    publish(story, shared, [flagged, of_red[1], failed, of_yellow[1]])
    assert used(story) == {"红": (1, 100, 64 * 64, 1000), "黄": (1, 100, 64 * 64, 1000)}
    assert story.count("usage_entries") == 2, "one for each tenant"

    publish(story, lost, stored(story, lost))  # its worker returns
    story.skip_backoff()
    while microbatch := story.claim(capacity=1):
        story.start(microbatch)
        publish(story, microbatch, stored(story, microbatch, render_ms=7))
    assert used(story) == {"红": (2, 107, 2 * 64 * 64, 2000), "黄": (2, 107, 2 * 64 * 64, 2000)}


def owner(story: Story, job_id: UUID) -> str:
    statement = "SELECT name FROM tenants JOIN jobs ON jobs.tenant_id = tenants.id WHERE jobs.id = :job"
    return str(story.rows(statement, job=job_id)[0].name)


def test_a_publish_that_is_repeated_or_rolled_back_enters_nothing(story: Story) -> None:
    story.submit(count=2)
    microbatch = story.started(capacity=2)
    with story.database.connect() as connection, connection.begin() as gone:
        leases.publish(connection, microbatch.lease_id, stored(story, microbatch))
        gone.rollback()
    assert used(story) == {}
    for _ in range(3):
        publish(story, microbatch, stored(story, microbatch))
    assert used(story)["somebody"][0] == 2


def test_what_was_cancelled_meanwhile_costs_nothing(story: Story) -> None:
    cancelled, kept = story.submit(), story.submit()
    microbatch = story.started(capacity=2)
    story.cancel(cancelled)
    publish(story, microbatch, stored(story, microbatch))
    assert story.job(kept).state == "succeeded"
    assert used(story)["somebody"][:2] == (1, 100)


def test_an_image_counts_for_the_tier_that_its_job_has_in_the_end(story: Story) -> None:
    job = story.submit(tier=Tier.BULK)
    microbatch = story.started()
    story.change_tier(job, Tier.INTERACTIVE)
    publish(story, microbatch, stored(story, microbatch))
    assert [row.tier for row in story.rows(TOTALS)] == [story.job(job).tier]


def test_each_key_has_entries_of_its_own(story: Story) -> None:
    keys = [new_id(), new_id(), None]
    with transaction(story.database) as connection:
        for key in keys:
            jobs.submit(connection, story.tenant(), story.recipe(count=2), key_id=key)
    microbatch = story.started(capacity=6)
    publish(story, microbatch, stored(story, microbatch))
    for _ in range(2):
        by_key = {row.key_id: row.images for row in story.rows(f"SELECT * FROM {USED} AS used")}
        assert by_key == dict.fromkeys(keys, 2)
        fold(story)


def test_a_batch_and_its_retry_pass_their_keys_on_to_their_jobs(settings: Settings, story: Story) -> None:
    farm, first, second = BatchStory(story, settings), new_id(), new_id()
    upload = farm.upload("红色的圆形\n蓝色的圆形".encode())
    with transaction(story.database) as connection:
        batch = batches.submit(connection, farm.tenant(), upload, PLAN, key_id=first)
    assert not farm.expander.work(batch, 60)
    assert {job.key_id for job in farm.jobs_of(batch)} == {first}

    farm.publish(farm.started(capacity=8), ImageState.FAILED, error_code="prompt_too_long", error_message="No.")
    farm.end()
    with transaction(story.database) as connection:
        retry, _ = retries.submit(connection, farm.tenant(), batch, key_id=second)
    assert not farm.expander.work(retry, 60)
    assert {job.key_id for job in farm.jobs_of(retry)} == {second}


def test_usage_is_folded_into_days_and_stays_when_the_jobs_are_gone(story: Story) -> None:
    story.submit(count=3, width=64, height=64)
    for _ in range(3):
        microbatch = story.started(capacity=1)
        publish(story, microbatch, stored(story, microbatch))
        assert fold(story) == 1
    assert fold(story) == 0
    assert story.count("usage_days") == 1
    before = used(story)
    assert before["somebody"] == (3, 300, 3 * 64 * 64, 3000)
    with transaction(story.database) as connection:
        connection.execute(text("DELETE FROM images"))
        connection.execute(text("DELETE FROM jobs"))
    assert used(story) == before


def test_days_are_those_of_utc(story: Story) -> None:
    story.submit()
    microbatch = story.started()
    with transaction(story.database) as connection:
        connection.execute(text("SET LOCAL timezone = 'Pacific/Kiritimati'"))  # 14 hours ahead
        leases.publish(connection, microbatch.lease_id, stored(story, microbatch))
    assert story.rows("SELECT day = (now() AT TIME ZONE 'UTC')::date AS is_today FROM usage_entries")[0].is_today


def test_a_fold_waits_for_no_other_and_counts_nothing_twice(story: Story) -> None:
    story.submit(count=4)
    for _ in range(2):
        microbatch = story.started(capacity=1)
        publish(story, microbatch, stored(story, microbatch))
    with story.database.begin() as connection:
        assert ledger.fold(connection) == 2
        microbatch = story.started(capacity=1)
        publish(story, microbatch, stored(story, microbatch))
        assert story.rows(SUM)[0].images == 3, "who reads meanwhile sees each entry once"
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(fold, story)  # waits for the day, not for the entries
            until_blocked(story)
            connection.commit()
            assert other.result() == 1
    assert story.rows(SUM)[0].images == 3
    assert story.count("usage_entries") == 0


def test_whoever_reads_while_many_fold_sees_each_image_once(story: Story) -> None:
    images = 60
    story.submit(count=images)
    over, seen = threading.Event(), list[int]()

    def fold_on() -> None:
        while not over.is_set():
            fold(story)

    def read_on() -> None:
        while not over.is_set():
            seen.append(story.rows(SUM)[0].images)

    with ThreadPoolExecutor(4) as pool:
        folding = [pool.submit(act) for act in (fold_on, fold_on, fold_on, read_on)]
        published = 0
        while microbatch := story.claim(capacity=1):
            story.start(microbatch)
            publish(story, microbatch, stored(story, microbatch))
            published += 1
            assert story.rows(SUM)[0].images == published
        over.set()
        for one in folding:
            one.result()
    assert published == images
    assert seen == sorted(seen), "a sum that falls has missed a row, or counted one twice"
    fold(story)
    assert (story.count("usage_entries"), story.rows(SUM)[0].images) == (0, images)
