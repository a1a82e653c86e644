"""Who goes along in a microbatch, and at whose expense: places left by the first lane go by tier, share, then age."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from common.enums import Tier
from tests.support.stories import Story


def served(story: Story, **shares: float) -> None:
    """As if these tenants had been served so much already."""
    for name, share in shares.items():
        tenant = story.tenant(name)
        with story.database.begin() as connection:
            connection.execute(text("UPDATE tenants SET virtual_time = :s WHERE id = :t"), {"s": share, "t": tenant})


def company(story: Story, **claim: Any) -> list[UUID]:
    """The jobs of a microbatch of two places."""
    return [image.job_id for image in story.claim(capacity=2, **claim).images]


def test_the_other_places_go_to_the_higher_tier_whatever_its_share_and_age(story: Story) -> None:
    served(story, greedy=10)
    story.submit(tenant="modest", tier=Tier.BULK)
    higher = story.submit(tenant="greedy", tier=Tier.STANDARD)
    first = story.submit(tenant="first", tier=Tier.INTERACTIVE)
    assert set(company(story)) == {first, higher}


def test_within_a_tier_they_go_to_the_tenant_with_the_smaller_share_whatever_its_age(story: Story) -> None:
    served(story, greedy=10)
    story.submit(tenant="greedy")
    modest = story.submit(tenant="modest")
    first = story.submit(tenant="first", tier=Tier.INTERACTIVE)
    assert set(company(story)) == {first, modest}


@pytest.mark.parametrize("is_first_made", [False, True])
def test_within_a_share_they_go_to_the_oldest(story: Story, is_first_made: bool) -> None:
    """Whichever lane was made first, and whichever was changed last."""
    if is_first_made:
        story.cancel(story.submit(tenant="newer"))
    older = story.submit(tenant="older")
    story.submit(tenant="newer")
    story.submit(tenant="older")
    first = story.submit(tenant="first", tier=Tier.INTERACTIVE)
    assert set(company(story)) == {first, older}


@pytest.mark.parametrize("lower_tier", [False, True])
def test_the_first_lane_fills_as_many_places_as_it_can(story: Story, lower_tier: bool) -> None:
    """Also when it is a lower tier's turn, and those of higher tiers could go along."""
    bulk = story.submit(tier=Tier.BULK, count=2)
    interactive = story.submit(tier=Tier.INTERACTIVE, count=2)
    assert set(company(story, lower_tier=lower_tier)) == {bulk if lower_tier else interactive}


def test_the_oldest_of_the_lower_tiers_has_the_turn_whatever_its_share(story: Story) -> None:
    served(story, greedy=10)
    story.submit(tier=Tier.INTERACTIVE)
    oldest = story.submit(tenant="greedy", tier=Tier.BULK, steps=3)
    story.submit(tenant="modest", tier=Tier.STANDARD, steps=4)
    assert company(story, lower_tier=True) == [oldest]


def test_a_tenant_pays_for_its_own_images_only(story: Story) -> None:
    story.tenant("heavy", weight=2)
    story.submit(tenant="first", tier=Tier.INTERACTIVE)
    story.submit(tenant="heavy", count=2)
    story.tenant("absent")
    assert len(story.claim(capacity=8).images) == 3
    paid = {row.name: float(row.virtual_time) for row in story.rows("SELECT name, virtual_time FROM tenants")}
    assert paid == {"first": 1, "heavy": 1, "absent": 0}
