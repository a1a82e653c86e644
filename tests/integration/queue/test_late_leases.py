"""A worker freezes beyond its lease and acts late, when its heirs have stored everything: nothing visible changes."""

from typing import Any
from uuid import UUID

import pytest

from common.db import transaction
from common.enums import ImageState
from common.queue import orphans
from common.queue.claim import Microbatch
from common.storage import image_key
from tests.support.stories import Story

TABLES = ("images", "jobs", "lanes", "leases", "tenants")


def snapshot(story: Story) -> dict[str, list[Any]]:
    return {table: sorted(map(tuple, story.rows(f"SELECT * FROM {table}")), key=str) for table in TABLES}


def lease(story: Story, microbatch: Microbatch) -> dict[str, Any]:
    (row,) = story.rows("SELECT * FROM leases WHERE id = :id", id=microbatch.lease_id)
    return dict(row._mapping)


def cleaned(story: Story) -> dict[UUID, list[str]]:
    """What the sweep would delete from storage; it does."""
    found = story.leftovers()
    with transaction(story.database) as connection:
        orphans.mark_cleaned(connection, list(found))
    return {lease_id: sorted(keys) for lease_id, keys in found.items()}


@pytest.fixture
def frozen(story: Story) -> Microbatch:
    """A lease of three images of two jobs that was lost; its heirs have stored all of them, and the sweep was there."""
    jobs = [story.submit(count=2), story.submit(tenant="other", count=1)]
    frozen = story.started()
    assert len(frozen.images) == 3
    story.die(frozen)
    story.skip_backoff()
    while heir := story.claim():
        story.start(heir)
        story.publish(heir)
    assert {image.state for job in jobs for image in story.images(job)} == {ImageState.STORED}
    cleaned(story)
    return frozen


@pytest.mark.parametrize("state", [ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED])
def test_publishing_after_its_heirs_changes_nothing_but_what_is_to_be_cleaned(
    story: Story, frozen: Microbatch, state: ImageState
) -> None:
    before, row = snapshot(story), lease(story, frozen)
    assert (row["outcome"], row["needs_cleanup"]) == ("lost", False)
    late = story.publish(frozen, state)
    assert (late.images, late.ended_jobs) == (frozenset(), ())
    assert lease(story, frozen) == row | {"needs_cleanup": True}  # what it uploaded late, no image shows
    mine = sorted(image_key(image.job_id, image.index, frozen.lease_id, "png") for image in frozen.images)
    assert cleaned(story) == {frozen.lease_id: mine}
    assert snapshot(story) == before
    assert story.balances()


def test_nothing_else_that_it_does_late_changes_anything(story: Story, frozen: Microbatch) -> None:
    before = snapshot(story)
    assert story.renew(frozen) == {}
    assert story.start(frozen) == frozenset()
    story.release(frozen)
    assert set(cleaned(story)) == {frozen.lease_id}
    assert snapshot(story) == before
