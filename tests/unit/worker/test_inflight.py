"""The leases that a worker holds, which of their images are wanted, and the states of a microbatch in flight."""

import threading
import time
from concurrent.futures import Future
from uuid import UUID

from common.db import new_id
from common.queue.claim import Image, Microbatch
from common.recipes.recipe import Draft, resolve
from tests.support.stories import CATALOG
from worker.render.inflight import HeldLeases, InflightMicrobatch, RenderedMicrobatch, State
from worker.render.input_images import PendingInputs

RECIPE = resolve(Draft.model_validate({"prompt": "圆", "model": "mini-zh"}), CATALOG, "mini-zh", root_seed=1)


def microbatch(*jobs: UUID) -> Microbatch:
    """One image of each job."""
    return Microbatch(new_id(), "mini-zh", tuple(Image(new_id(), job, 0, 0, RECIPE, None) for job in jobs))


def ids(of: Microbatch) -> list[UUID]:
    return [image.id for image in of.images]


def test_a_full_worker_has_room_again_when_a_lease_is_removed() -> None:
    held_leases, one, another = HeldLeases(2), microbatch(new_id()), microbatch(new_id())
    held_leases.add(one)
    assert held_leases.wait_for_room(0)
    held_leases.add(another)
    assert not held_leases.wait_for_room(0)
    threading.Timer(0.05, held_leases.remove, [one.lease_id]).start()
    began = time.monotonic()
    assert held_leases.wait_for_room(30)
    assert time.monotonic() - began < 15  # it was woken
    assert held_leases.ids() == [another.lease_id]


def test_a_deferred_release_makes_room_and_is_kept_until_it_is_confirmed() -> None:
    held_leases, one, another = HeldLeases(1), microbatch(new_id()), microbatch(new_id())
    held_leases.add(one)
    held_leases.defer_release(one.lease_id)
    held_leases.defer_release(another.lease_id)  # claimed, perhaps: it was never taken
    assert held_leases.wait_for_room(0)
    assert held_leases.ids() == []
    assert held_leases.wanted(one.lease_id) == frozenset()
    assert set(held_leases.deferred_releases()) == {one.lease_id, another.lease_id}
    held_leases.confirm_released([one.lease_id])
    assert held_leases.deferred_releases() == [another.lease_id]


def test_an_unwanted_image_never_becomes_wanted_again() -> None:
    held_leases, one = HeldLeases(8), microbatch(new_id(), new_id(), new_id())
    first, second, third = ids(one)
    held_leases.add(one)
    assert held_leases.wanted(one.lease_id) == {first, second, third}
    held_leases.restrict(one.lease_id, [first, second])
    held_leases.restrict(one.lease_id, [second, third])
    assert held_leases.wanted(one.lease_id) == {second}
    held_leases.apply_renewal([one.lease_id], {one.lease_id: ids(one)})
    assert held_leases.wanted(one.lease_id) == {second}


def test_a_renewal_that_does_not_name_a_lease_loses_it_and_no_other() -> None:
    """A lease that was added after the renewal was sent is not lost."""
    held_leases, lost, kept, late = HeldLeases(8), *(microbatch(new_id()) for _ in range(3))
    for one in (lost, kept, late):
        held_leases.add(one)
    held_leases.apply_renewal([lost.lease_id, kept.lease_id], {kept.lease_id: ids(kept)})
    assert held_leases.wanted(lost.lease_id) == frozenset()
    assert held_leases.wanted(kept.lease_id) == {*ids(kept)}
    assert held_leases.wanted(late.lease_id) == {*ids(late)}
    assert held_leases.ids()  # it is held until it is let go


def test_a_cancelled_job_is_wanted_in_none_of_its_leases() -> None:
    job, other = new_id(), new_id()
    held_leases, one, another = HeldLeases(8), microbatch(job, other), microbatch(other, job)
    for held in (one, another):
        held_leases.add(held)
    held_leases.cancel_jobs([job, new_id()])
    assert held_leases.wanted(one.lease_id) == {one.images[1].id}
    assert held_leases.wanted(another.lease_id) == {another.images[0].id}


def test_a_lease_is_the_only_one_when_all_others_are_removed() -> None:
    held_leases, one, another = HeldLeases(8), microbatch(new_id()), microbatch(new_id())
    for held in (one, another):
        held_leases.add(held)
    assert not held_leases.wait_until_only(one.lease_id, 0)
    held_leases.remove(another.lease_id)
    assert held_leases.wait_until_only(one.lease_id, 0)
    assert not held_leases.wait_until_only(another.lease_id, 0)
    assert held_leases.ids()
    held_leases.remove(one.lease_id)
    assert held_leases.wait_until_only(one.lease_id, 0)  # lost meanwhile: nothing to wait for
    assert not held_leases.ids()


def test_a_microbatch_is_claimed_then_started_then_rendered() -> None:
    claimed = microbatch(new_id(), new_id())
    inflight = InflightMicrobatch(claimed, PendingInputs({}), is_full=False)
    assert (inflight.state, inflight.images) == (State.CLAIMED, ())
    inflight.start({claimed.images[1].id})
    assert (inflight.state, inflight.images) == (State.STARTED, claimed.images[1:])
    inflight.result = Future()
    assert (inflight.state, inflight.wait_until_rendered(0)) == (State.STARTED, False)
    rendered = RenderedMicrobatch(claimed, [], 1.0, {})
    inflight.result.set_result(rendered)
    assert (inflight.state, inflight.wait_until_rendered(0)) == (State.RENDERED, True)
    assert inflight.rendered() is rendered


def test_the_end_of_a_microbatch_is_unknown_until_something_is_known() -> None:
    inflight = InflightMicrobatch(microbatch(new_id()), PendingInputs({}), is_full=False)
    assert inflight.seconds_left() == float("inf")
    inflight.begin_render(None)
    assert inflight.seconds_left() == float("inf")
    inflight.begin_render(60)
    assert 0 < inflight.seconds_left() <= 60
    inflight.begin_chunk(0.5, 0.5)
    inflight.end_step(2, 2)
    assert inflight.seconds_left() <= 0
