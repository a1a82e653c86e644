"""Reuse: an image gets the tenant's stored picture of the same key and class, and nobody else's, for nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Row, text

from bench.harness import backlog
from common.accounts import stored_bytes
from common.config import Settings
from common.db import new_id, transaction
from common.deletion import objects, retention, rows
from common.deletion.objects import DeletedObject
from common.enums import ImageState, JobState
from common.queue import leases, reuse, workers
from common.queue.reuse import Linked
from common.recipes.picture_key import DrawnWith
from common.storage import Storage
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from tests.support.workers import until_blocked
from worker.control.deleter import Deleter

DRAWN_WITH = DrawnWith("some weights", {}, "a class")
USED = "SELECT coalesce(sum(images), 0)::int AS images FROM usage_entries"


def serve(story: Story, *drawn_with: DrawnWith) -> None:
    """These workers live, and serve mini-zh so."""
    with transaction(story.database) as connection:
        for number, one in enumerate(drawn_with):
            facts = {"mini-zh": {"weights": one.weights or "", "class": one.picture_class}}
            worker = workers.Worker(UUID(int=number), f"w{number}", {}, ["mini-zh"], picture_classes=facts)
            workers.heartbeat(connection, worker, ready=True)


def drawn(
    story: Story,
    tenant: str = "somebody",
    with_: DrawnWith = DRAWN_WITH,
    state: ImageState = ImageState.STORED,
    **fields: Any,
) -> UUID:
    """A job whose pictures a worker has drawn."""
    job_id = story.submit(tenant, seed=7, **fields)
    microbatch, is_stored = story.started(), state == ImageState.STORED
    outcomes = [
        replace(
            story.outcome(image, microbatch.lease_id) if is_stored else leases.Outcome(image.id, state),
            picture_key=with_.key(image.recipe, image.index),
            picture_class=with_.picture_class,
        )
        for image in microbatch.images
    ]
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, outcomes)
    return job_id


def reusing(story: Story, tenant: str = "somebody", **fields: Any) -> tuple[UUID, Linked]:
    """A job that reuses what is stored."""
    job_id, tenant_id = story.submit(tenant, seed=7, **fields), story.tenant(tenant)
    with transaction(story.database) as connection:
        return job_id, reuse.link_job(connection, tenant_id, job_id, story.recipe(seed=7, **fields), {})


def keys(story: Story, job_id: UUID) -> list[Any]:
    return [image.key for image in story.images(job_id)]


def say(story: Story, statement: str) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement))


@pytest.fixture
def served(story: Story) -> Story:
    serve(story, DRAWN_WITH)
    return story


def test_an_image_gets_the_picture_that_is_stored_for_nothing(served: Story) -> None:
    """With two or with four pictures a job; those that nobody has drawn wait as usual."""
    first = drawn(served, count=2)
    used = served.rows(USED)
    second, linked = reusing(served, count=2)
    assert linked == Linked(2, (second,))
    job, images = served.job(second), served.images(second)
    assert (job.state, job.open, job.started_at) == (JobState.SUCCEEDED, 0, None)
    assert [(image.state, image.reused, image.attempts) for image in images] == [("stored", True, 0)] * 2
    assert [(image.key, image.sha256, image.bytes, image.render_ms) for image in images] == [
        (image.key, image.sha256, image.bytes, image.render_ms) for image in served.images(first)
    ]
    third, linked = reusing(served, count=4)
    assert linked == Linked(2)
    assert served.job(third).open == 2
    assert [image.state for image in served.images(third)] == ["stored", "stored", "queued", "queued"]
    assert served.rows(USED) == used, "it costs nothing"
    assert served.balances()


def test_a_picture_that_was_reused_is_reused_again(served: Story) -> None:
    first = drawn(served)
    second, _ = reusing(served)
    with transaction(served.database) as connection:
        rows.delete_jobs(connection, [first], served.tenant())
    third, linked = reusing(served)
    assert linked == Linked(1, (third,))
    assert keys(served, third) == keys(served, second)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"tenant": "somebody else"}, id="another tenant's"),
        pytest.param({"with_": DrawnWith("other weights", {}, "a class")}, id="of other weights"),
        pytest.param({"with_": DrawnWith("some weights", {}, "another class")}, id="of another class"),
        pytest.param({"state": ImageState.FLAGGED}, id="flagged"),
        pytest.param({"prompt": "圆"}, id="of another prompt"),
    ],
)
def test_another_picture_is_not_reused(served: Story, how: dict[str, Any]) -> None:
    drawn(served, **how)
    job_id, linked = reusing(served)
    assert linked == Linked(0)
    assert served.job(job_id).state == JobState.QUEUED


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE images SET picture_deleted_at = now()",
        "UPDATE images SET error_code = 'picture_lost', error_message = 'it is gone'",
        "UPDATE images SET picture_key = sha256('of another picture')",
    ],
)
def test_a_picture_that_is_gone_or_not_the_same_is_not_reused(served: Story, harm: str) -> None:
    drawn(served)
    say(served, harm)
    assert reusing(served)[1] == Linked(0)


def test_a_picture_that_is_being_deleted_is_not_waited_for(served: Story) -> None:
    first, second, tenant_id = drawn(served), served.submit(seed=7), served.tenant()
    with served.database.begin() as deletion:
        rows.delete_jobs(deletion, [first], tenant_id)
        with transaction(served.database) as connection:
            assert reuse.link_job(connection, tenant_id, second, served.recipe(seed=7), {}) == Linked(0)


def test_a_picture_of_a_batch_that_is_being_deleted_is_not_reused(served: Story, settings: Settings) -> None:
    drawn(served)
    batch_id = BatchStory(served, settings).batch_of()
    say(served, f"UPDATE jobs SET batch_id = '{batch_id}', position = 0")
    for deleted_at, images in (("now()", 0), ("NULL", 1)):
        say(served, f"UPDATE batches SET deleted_at = {deleted_at}")
        assert reusing(served)[1].images == images


def test_a_picture_of_any_class_that_serves_the_model_will_do(story: Story) -> None:
    """But not of one whose worker has stopped: no picture would be drawn by it now."""
    other = DrawnWith("some weights", {}, "another class")
    serve(story, DRAWN_WITH, other)
    drawn(story, with_=other)
    assert reusing(story)[1].images == 1
    with transaction(story.database) as connection:
        workers.stop(connection, UUID(int=1), "it is late")
    assert reusing(story)[1] == Linked(0)


def test_what_is_not_committed_is_linked_again(served: Story) -> None:
    """As after a kill of the process that does it: once, in the end."""
    drawn(served)
    job_id, recipe, tenant_id = served.submit(seed=7), served.recipe(seed=7), served.tenant()
    connection = served.database.connect()
    assert reuse.link_job(connection, tenant_id, job_id, recipe, {}).images == 1
    connection.close()
    assert served.images(job_id)[0].state == "queued"
    for images in (1, 0):
        with transaction(served.database) as connection:
            assert reuse.link_job(connection, tenant_id, job_id, recipe, {}).images == images
    assert served.balances()


# Objects that images share


@pytest.fixture
def deleter(story: Story, settings: Settings) -> Deleter:
    storage = Storage(settings)
    storage.ensure_bucket()
    return Deleter(settings.model_copy(update={"lease_s": 0}), story.database, storage)


def stored(story: Story, settings: Settings) -> tuple[Row[Any], Row[Any]]:
    """Two images with one object."""
    first = drawn(story)
    second, _ = reusing(story)
    (one,), (other,) = story.images(first), story.images(second)
    assert one.key == other.key
    Storage(settings).put(one.key, b"x", "image/png")
    return one, other


def delete(story: Story, image: Row[Any]) -> None:
    with transaction(story.database) as connection:
        rows.delete_images(connection, [image.id], story.tenant())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_image_takes_the_bytes_along(
    served: Story, deleter: Deleter, settings: Settings, order: tuple[int, int]
) -> None:
    images, storage = stored(served, settings), Storage(settings)
    delete(served, images[order[0]])
    deleter.delete_bytes()
    assert storage.exists(images[0].key)
    assert served.count("objects_to_delete") == 0
    delete(served, images[order[1]])
    deleter.delete_bytes()
    assert not storage.exists(images[0].key)


def test_a_picture_that_retention_deletes_stays_for_the_others(
    served: Story, deleter: Deleter, settings: Settings
) -> None:
    """The first one is too old, then both are."""
    (first, second), storage = stored(served, settings), Storage(settings)
    say(served, "UPDATE tenants SET keep_pictures_days = 1")
    for old, is_left in (([first], True), ([first, second], False)):
        for image in old:
            say(served, f"UPDATE images SET finished_at = now() - interval '2 days' WHERE id = '{image.id}'")
        say(served, "UPDATE lanes SET pictures_kept_from = NULL")
        served.count_ended()
        with transaction(served.database) as connection:
            assert retention.delete_pictures(connection)
        deleter.delete_bytes()
        assert storage.exists(first.key) is is_left


def test_two_images_of_a_lane_whose_object_is_one_are_deleted_together(
    served: Story, deleter: Deleter, settings: Settings
) -> None:
    (first, _), storage = stored(served, settings), Storage(settings)
    say(served, "UPDATE tenants SET keep_pictures_days = 1")
    say(served, "UPDATE images SET finished_at = now() - interval '2 days'")
    served.count_ended()
    with transaction(served.database) as connection:
        assert retention.delete_pictures(connection)
    deleter.delete_bytes()
    assert not storage.exists(first.key)


def test_both_images_deleted_at_once_leave_no_bytes(
    served: Story, deleter: Deleter, settings: Settings, aside: ThreadPoolExecutor
) -> None:
    """While the first deletion is not committed, the second one waits for it, and the bytes for both."""
    (first, second), storage = stored(served, settings), Storage(settings)
    with served.database.begin() as connection:
        rows.delete_images(connection, [first.id], served.tenant())
        other = aside.submit(delete, served, second)
        until_blocked(served)
    other.result(30)
    deleter.delete_bytes()
    assert not storage.exists(first.key)


def test_deletions_of_the_same_objects_do_not_wait_for_each_other(served: Story, aside: ThreadPoolExecutor) -> None:
    """Whatever the order in which they come to them."""

    def add(connection: Connection, *keys: str) -> None:
        objects.add(connection, map(DeletedObject, keys), served.tenant())

    def add_both() -> None:
        with served.database.begin() as connection:
            add(connection, "images/b", "images/a")

    with served.database.begin() as connection:
        add(connection, "images/a")
        other = aside.submit(add_both)
        until_blocked(served)
        add(connection, "images/b")
    other.result(30)
    assert served.count("objects_to_delete") == 2


def test_an_image_that_is_linked_while_the_other_one_is_deleted_keeps_the_bytes(
    served: Story, deleter: Deleter, settings: Settings, aside: ThreadPoolExecutor
) -> None:
    first, recipe, tenant_id = drawn(served), served.recipe(seed=7), served.tenant()
    (image,), second = served.images(first), served.submit(seed=7)
    Storage(settings).put(image.key, b"x", "image/png")
    with served.database.begin() as connection:
        assert reuse.link_job(connection, tenant_id, second, recipe, {}).images == 1
        other = aside.submit(delete, served, image)
        until_blocked(served)
    other.result(30)
    deleter.delete_bytes()
    assert Storage(settings).exists(image.key)
    assert keys(served, second) == [image.key]


def test_a_shared_object_counts_once_among_the_bytes_of_its_tenant(served: Story, settings: Settings) -> None:
    def count() -> int:
        with transaction(served.database) as connection:
            return stored_bytes.count(connection, served.tenant())

    first, second = stored(served, settings)
    reusing(served)
    assert count() == 1
    delete(served, first)
    assert count() == 1
    delete(served, second)
    assert count() == 1


# How much it reads


def test_a_picture_is_found_without_reading_the_others(served: Story) -> None:
    """Of a thousand others, and of as many of another tenant that are the same."""
    for tenant in ("somebody", "somebody else"):
        backlog.fill(served.database, tenant, 1000)
    say(
        served,
        "UPDATE images SET state = 'stored', finished_at = now(), key = id::text, sha256 = '', bytes = 1,"
        " picture_key = sha256(id::text::bytea), reuse_key = gen_random_uuid()",
    )
    drawn(served, "somebody else")
    for _ in range(20):
        reusing(served, "somebody else")
    drawn(served)
    backlog.vacuum(served.database)
    (key,) = DRAWN_WITH.keys(served.recipe(seed=7))
    parameters = {"tenant": served.tenant(), "images": [new_id()], "keys": [key], "classes": ["a class"]}
    statement = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {reuse.LINK.text}")
    with served.database.connect() as connection:
        (plan,) = connection.execute(statement, parameters).scalar_one()
    reads = [
        node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "images" and "Scan" in node["Node Type"]
    ]
    assert {node.get("Index Name") for node in reads} == {"images_reuse_key_idx", "images_pkey"}
    (found,) = (node for node in reads if node["Index Name"] == "images_reuse_key_idx")
    assert (found["Actual Rows"], found.get("Rows Removed by Filter", 0)) == (1, 0)


def test_many_images_are_not_compared_with_each_other(served: Story) -> None:
    """Where the last statistics know no queued image, as behind a chunk of a batch that was linked."""
    backlog.fill(served.database, "somebody", 5000)
    say(served, "UPDATE images SET state = 'stored', finished_at = now(), key = id::text, sha256 = '', bytes = 1")
    backlog.vacuum(served.database)
    many = {"images": [new_id()] * 2000, "keys": ["ab" * 32] * 2000, "classes": ["a class"] * 2000}
    with served.database.connect() as connection:
        statement = text(f"EXPLAIN (FORMAT JSON) {reuse.LINK.text}")
        (plan,) = connection.execute(statement, many | {"tenant": served.tenant()}).scalar_one()
    filters = [node.get("Join Filter", "") for node in nodes(plan["Plan"])]
    assert not [one for one in filters if "found.image_id" in one]


def nodes(node: dict[str, Any]) -> Any:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)
