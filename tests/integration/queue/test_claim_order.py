"""Who goes along in a microbatch, and at whose expense: places left by the first lane go by tier, share, then age."""

from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from common.db import new_id, transaction
from common.enums import Tier
from common.queue.charges import Charges, add
from common.queue.claim import Memory, Offer, claim
from tests.support.stories import Story


def served(story: Story, **shares: float) -> None:
    """As if these tenants had been served so much already."""
    for name, share in shares.items():
        tenant = story.tenant(name)
        with story.database.begin() as connection:
            connection.execute(text("UPDATE tenants SET virtual_time = :s WHERE id = :t"), {"s": share, "t": tenant})


def company(story: Story, capacity: int = 2, **options: Any) -> list[UUID]:
    """The jobs of a microbatch of so many places."""
    return [image.job_id for image in story.claim(capacity=capacity, **options).images]


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


def test_the_turn_of_the_lower_tiers_goes_by_share_and_within_a_share_by_age(story: Story) -> None:
    story.submit(tier=Tier.INTERACTIVE)
    first = story.submit(tenant="greedy", tier=Tier.BULK, steps=3, count=2)
    story.submit(tenant="greedy", tier=Tier.STANDARD, steps=3, count=2)
    other = story.submit(tenant="modest", tier=Tier.STANDARD, steps=4, count=2)
    assert company(story, capacity=1, lower_tier=True) == [first]
    assert company(story, capacity=1, lower_tier=True) == [other]
    assert company(story, capacity=1, lower_tier=True) in ([first], [other])


def test_whoever_calls_everything_interactive_does_not_mix_up_the_turns_of_the_others(story: Story) -> None:
    """Its virtual time runs ahead of theirs: the turns of the lower tiers are shared by their own."""
    story.tenant("heavy", weight=2)
    story.submit(tenant="hog", tier=Tier.INTERACTIVE, count=16)
    story.submit(tenant="hog", tier=Tier.INTERACTIVE, count=16)
    jobs = {
        story.submit(tenant=tenant, tier=tier, steps=steps, count=16): tenant
        for tenant, tier, steps in (
            ("light", Tier.STANDARD, 3),
            ("heavy", Tier.BULK, 4),
            ("hog", Tier.STANDARD, 5),
            ("heavy", Tier.BULK, 6),
        )
    }
    served = Counter[str]()
    for _ in range(16):
        company(story, capacity=2)
        served.update(jobs[job] for job in company(story, capacity=1, lower_tier=True))
    assert served == {"light": 4, "hog": 4, "heavy": 8}


def test_a_process_knows_what_it_has_not_collected_yet_of_the_lower_turns(story: Story) -> None:
    story.submit(tier=Tier.INTERACTIVE)
    jobs = [story.submit(tenant=name, tier=Tier.BULK, steps=3 + n, count=4) for n, name in enumerate("ab")]
    unpaid: Charges = {}
    served = []
    for _ in range(4):
        with transaction(story.database) as connection:
            offer = Offer(story.worker_id, {"mini-zh": 1}, lower_tier=True)
            taken = claim(connection, offer, new_id(), 60, Memory(unpaid))
        assert taken
        unpaid = add(unpaid, taken.charges)
        served.append(taken.images[0].job_id)
    assert served == jobs * 2


def test_who_comes_back_to_the_lower_turns_does_not_catch_up(story: Story) -> None:
    story.submit(tier=Tier.INTERACTIVE)
    old = story.submit(tenant="old", tier=Tier.BULK, steps=3, count=8)
    for _ in range(4):
        assert company(story, capacity=1, lower_tier=True) == [old]
    new = story.submit(tenant="new", tier=Tier.BULK, steps=4, count=8)
    served = [company(story, capacity=1, lower_tier=True)[0] for _ in range(4)]
    assert (served.count(new), served.count(old)) == (2, 2)


def test_a_tenant_pays_for_its_own_images_only(story: Story) -> None:
    story.tenant("heavy", weight=2)
    story.submit(tenant="first", tier=Tier.INTERACTIVE)
    story.submit(tenant="heavy", count=2)
    story.tenant("absent")
    assert len(story.claim(capacity=8).images) == 3
    paid = {row.name: float(row.virtual_time) for row in story.rows("SELECT name, virtual_time FROM tenants")}
    assert paid == {"first": 1, "heavy": 1, "absent": 0}
