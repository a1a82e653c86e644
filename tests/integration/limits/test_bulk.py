"""Bulk retries and changes of tier within limits: step by step, and a step that does not fit is not done."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

import pytest

from api.deps import AppState
from api.services import bulk
from common.accounts import keys, tenants
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import Scope, Tier
from common.errors import LimitReached, TierNotAllowed
from common.queue import bulk as selection
from common.queue.search import JobFilter, preview
from tests.support.limits import images
from tests.support.serving import Api
from tests.support.stories import Story

ALL = JobFilter()


@pytest.fixture
def state(api: Api, monkeypatch: pytest.MonkeyPatch) -> AppState:
    monkeypatch.setattr(selection, "STEP_JOBS", 2)
    shared: AppState = api.app.state.shared
    return shared


@pytest.fixture
def caller(story: Story) -> Caller:
    with transaction(story.database) as connection:
        tenant_id = tenants.ensure_tenant(connection, "somebody")
        key = keys.create_key(connection, tenant_id, "a key", [Scope.ADMIN], "")
        return keys.find_key(connection, key.id)


def seen_at(story: Story, caller: Caller) -> datetime:
    with transaction(story.database) as connection:
        return preview(connection, caller.tenant_id, ALL).at


def cancelled(story: Story, *tiers: Tier) -> list[UUID]:
    jobs = [story.submit(tier=tier) for tier in tiers]
    for job in jobs:
        story.cancel(job)
    return jobs


def test_a_bulk_retry_ends_at_the_step_that_does_not_fit(story: Story, state: AppState, caller: Caller) -> None:
    jobs = cancelled(story, *[Tier.BULK] * 5)
    at, caller = seen_at(story, caller), replace(caller, own_limits={"waiting_images": 3, "images_a_day": 9})
    report = bulk.retry(state, caller, ALL, at)
    assert (report.changed, report.after, images(story)) == (2, jobs[1], 2)
    with pytest.raises(LimitReached) as refused:
        bulk.retry(state, caller, ALL, at, report.after)
    assert (refused.value.limit, refused.value.used, images(story)) == ("waiting_images", 2, 2)
    caller = replace(caller, own_limits={"waiting_images": 5, "images_a_day": 9})
    assert bulk.retry(state, caller, ALL, at, report.after).changed == 3
    assert [row.images for row in story.rows("SELECT images FROM image_days")] == [5]


def test_a_bulk_change_to_interactive_ends_at_the_step_that_does_not_fit(
    story: Story, state: AppState, caller: Caller
) -> None:
    for _ in range(5):
        story.submit()
    at, caller = seen_at(story, caller), replace(caller, own_limits={"waiting_interactive": 3})
    assert bulk.change_tier(state, caller, ALL, at, Tier.INTERACTIVE).changed == 2
    with pytest.raises(LimitReached):
        bulk.change_tier(state, caller, ALL, at, Tier.INTERACTIVE)
    assert images(story, "interactive") == 2
    assert bulk.change_tier(state, caller, ALL, at, Tier.BULK).changed == 5


def test_jobs_of_a_tier_that_may_not_be_used_are_left_alone(story: Story, state: AppState, caller: Caller) -> None:
    cancelled(story, Tier.INTERACTIVE, Tier.BULK)
    at, caller = seen_at(story, caller), replace(caller, tiers=(Tier.BULK,))
    report = bulk.retry(state, caller, ALL, at)
    assert (report.changed, report.left_alone) == (1, {"tier_not_allowed": 1})
    with pytest.raises(TierNotAllowed):
        bulk.change_tier(state, caller, ALL, at, Tier.INTERACTIVE)
