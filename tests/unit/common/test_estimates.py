"""Estimates: the speed of the farm by what it published, and the order in which what waits is rendered."""

from math import inf
from typing import Any
from uuid import UUID

import pytest

from common.enums import Tier
from common.estimates.forecast import Waiting, Worker, forecast
from common.estimates.speed import Kind, Microbatch, Quantile, Speed

P50, P90 = Quantile.P50, Quantile.P90
MINI = Kind("mini-zh", "mini-zh 20", 20.0)
OTHER = Kind("other", "other 20", 20.0)
ONE = [Worker(frozenset({"mini-zh", "other"}), frozenset({"mini-zh"}))]


def microbatch(seconds: float, images: int = 8, kind: Kind = MINI, rank: int = 0, latency: float = 0.0) -> Microbatch:
    return Microbatch(kind, images, seconds, latency or seconds, seconds / images / 2, True, rank)


def speed(seconds: float = 8.0, **facts: object) -> Speed:
    known = [microbatch(seconds), microbatch(seconds, kind=OTHER)]
    return Speed(**{"microbatches": known, "capacity": {"mini-zh": 8, "other": 8}, **facts})  # type: ignore[arg-type]


def waiting(key: str, images: int, **facts: object) -> Waiting:
    given = {"tier": Tier.BULK, "tenant": "a", "kind": MINI, "order": UUID(int=ord(key[0]))}
    return Waiting(key, images=images, **(given | facts))  # type: ignore[arg-type]


def ends(*all_waiting: Waiting, workers: list[Worker] = ONE, of: Speed | None = None) -> dict[Any, Any]:
    found = forecast(all_waiting, workers, of or speed(), P50)
    return {one.key: pytest.approx(found.end(one.key)) for one in all_waiting}


def seconds(known: Speed, images: int, quantile: Quantile) -> float:
    found = known.seconds(MINI, images, quantile)
    assert found is not None
    return found


# Speed


def test_a_microbatch_takes_what_it_took_lately_and_p90_more() -> None:
    known = Speed([microbatch(seconds) for seconds in (1.0, 3.0) * 30])
    assert known.seconds(MINI, 8, P50) == pytest.approx(2.0, rel=0.15)
    assert seconds(known, 8, P90) >= 1.1 * seconds(known, 8, P50)
    assert Speed().seconds(MINI, 8, P50) is None


def test_a_rare_slow_microbatch_counts() -> None:
    known = Speed([microbatch(seconds) for seconds in (1.0, 1.0, 1.0, 1.0, 11.0) * 12])
    assert known.seconds(MINI, 8, P50) == pytest.approx(3.0)


def test_fewer_and_more_images_than_were_rendered() -> None:
    known = Speed([microbatch(2.0, images=1), microbatch(4.0, images=3)])
    assert known.seconds(MINI, 1, P50) == pytest.approx(2.0)
    assert known.seconds(MINI, 2, P50) == pytest.approx(3.0)
    assert 4.0 < seconds(known, 12, P50) < seconds(known, 12, P90)
    assert known.seconds(MINI, 12, P90) == pytest.approx(4 * 1.3 * 4.0)


def test_what_was_never_rendered_is_estimated_by_the_most_similar() -> None:
    small, large = Kind("mini-zh", "2 steps", 2.0), Kind("mini-zh", "50 steps", 50.0)
    known = Speed([microbatch(1.0, kind=small), microbatch(30.0, kind=large)])
    assert known.seconds(Kind("mini-zh", "25 steps", 25.0), 8, P50) == pytest.approx(15.0)
    assert known.seconds(Kind("mini-zh", "1 step", 1.0), 8, P50) == pytest.approx(0.5)
    assert known.seconds(OTHER, 8, P50) is None


def test_the_workers_that_are_there_tell_more_than_others() -> None:
    known = Speed([*(microbatch(9.0, rank=2) for _ in range(9)), *(microbatch(3.0) for _ in range(3))])
    assert known.seconds(MINI, 8, P50) == pytest.approx(3.0)


def test_microbatches_one_after_the_other_tell_more_than_single_ones() -> None:
    single = Microbatch(MINI, 8, 9.0, 9.0, 0.5, is_steady=False)
    known = Speed([*[single] * 9, *[microbatch(3.0)] * 3])
    assert seconds(known, 8, P50) == pytest.approx(3.0)
    assert known.latency(MINI, 8, P50) == pytest.approx(7.5, abs=1.5)


def test_without_microbatches_the_measure_of_the_workers_counts() -> None:
    known = Speed(image_s={"mini-zh": 2.0})
    assert (known.seconds(MINI, 4, P50), known.seconds(MINI, 4, P90)) == (8.0, 12.0)


# Forecast


def test_microbatches_come_one_after_the_other() -> None:
    assert ends(waiting("a", 40)) == {"a": 40.0}
    assert ends(waiting("a", 40), workers=ONE * 2) == {"a": 20.0}
    assert ends(waiting("a", 8), workers=ONE * 5) == {"a": 8.0}  # one call uses one worker


def test_a_call_uses_one_worker_whatever_else_the_workers_serve() -> None:
    workers = [Worker(frozenset({"mini-zh"})), *ONE]
    assert ends(waiting("a", 8), workers=workers) == {"a": 8.0}
    assert ends(waiting("a", 8), waiting("b", 8, kind=OTHER), workers=workers) == {"a": 8.0, "b": 8.0}


def test_older_ones_and_higher_tiers_come_first() -> None:
    first, mine = waiting("b", 80), waiting("c", 8)
    assert ends(mine, first) == {"b": 80.0, "c": 88.0}
    urgent = waiting("z", 16, tier=Tier.INTERACTIVE, tenant="other")
    assert ends(mine, first, urgent) == {"z": 16.0, "b": 96.0, "c": 104.0}


def test_tenants_share_by_weight() -> None:
    assert ends(waiting("a", 80), waiting("b", 80, tenant="b")) == {"a": 160.0, "b": 160.0}
    shared = ends(waiting("a", 80), waiting("b", 40, tenant="b", weight=2.0))
    assert shared == {"b": 60.0, "a": 120.0}


def test_a_model_that_is_not_in_memory_is_loaded_first() -> None:
    loads = speed(load_s={"other": [30.0], "mini-zh": [500.0]})
    assert ends(waiting("a", 8, kind=OTHER), waiting("b", 8, kind=OTHER), of=loads) == {"a": 38.0, "b": 46.0}
    assert ends(waiting("a", 8), of=loads) == {"a": 8.0}
    of_another = speed(load_s={"mini-zh": [20.0, 40.0]})
    assert ends(waiting("a", 8, kind=OTHER), of=of_another) == {"a": 38.0}


def test_a_worker_finishes_what_it_holds() -> None:
    held = waiting("h", 8, held_by=1, done=4.0, tenant="b")
    assert ends(held, waiting("a", 8, tier=Tier.INTERACTIVE)) == {"h": 4.0, "a": 12.0}


def test_the_last_microbatch_is_published_after_it_was_rendered() -> None:
    stored_late = Speed([microbatch(8.0, latency=11.0)] * 5, capacity={"mini-zh": 8})
    assert ends(waiting("a", 16), of=stored_late) == {"a": 19.0}


def test_what_can_be_claimed_later_waits() -> None:
    assert ends(waiting("a", 8, from_s=100.0), waiting("b", 8)) == {"b": 8.0, "a": 108.0}


def test_an_end_is_unknown_behind_what_may_take_any_time() -> None:
    unknown = waiting("a", 8, kind=Kind("new", "new", 1.0))
    both = [Worker(frozenset({"mini-zh", "new"}), frozenset({"mini-zh"}))]
    assert ends(unknown, waiting("b", 8), workers=both) == {"a": inf, "b": inf}
    assert ends(unknown, waiting("b", 8)) == {"a": inf, "b": 8.0}  # no worker serves it, so nobody waits for it
    assert ends(waiting("b", 8), workers=[]) == {"b": inf}


def test_the_place_within_a_lane_counts() -> None:
    found = forecast([waiting("a", 80)], ONE, speed(), P50)
    assert [found.end("a", images) for images in (8, 40, 80, 160)] == pytest.approx([8.0, 40.0, 80.0, 160.0])
