"""Datasets that take turns: which one goes on, for how long, and who finds no slot."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from worker.datasets.turns import Slot, Turns

NOW = 0.0  # seconds to wait


def taken(turns: Turns) -> Slot:
    slot = turns.join()
    assert slot is not None
    return slot


def test_the_first_in_line_has_the_turn_until_it_leaves() -> None:
    turns = Turns(slots=2, seconds=60)
    with taken(turns) as first:
        second = taken(turns)
        assert [first.has_turn(NOW), second.has_turn(NOW)] == [True, False]
        assert turns.join() is None
    assert second.has_turn(NOW)
    assert turns.join() is not None


def test_a_turn_that_is_over_goes_to_the_next_in_line() -> None:
    turns = Turns(slots=3, seconds=0)
    line = [taken(turns) for _ in range(3)]
    for now, following in ((0, 1), (1, 2), (2, 0)):
        assert not line[now].has_turn(NOW)  # it gives the turn up
        assert not line[now].has_turn(NOW)  # and takes none from others
        assert turns._queue[0] is line[following]


def test_who_gets_in_line_does_not_prolong_the_turn_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("worker.datasets.turns.time", SimpleNamespace(monotonic=lambda: now[0]))
    turns = Turns(slots=3, seconds=10)
    first = taken(turns)
    for now[0] in (5, 9):
        taken(turns)
        assert first.has_turn(NOW)
    now[0] = 11
    assert not first.has_turn(NOW)


def test_who_is_alone_goes_on() -> None:
    alone = taken(Turns(seconds=0))
    assert all(alone.has_turn(NOW) for _ in range(3))


def test_one_writes_at_a_time_and_each_comes_to_its_turn() -> None:
    turns, working, seen = Turns(slots=3, seconds=0), threading.Lock(), list[int]()

    def work(number: int, slot: Slot) -> None:
        with slot:
            for _ in range(20):
                while not slot.has_turn(5):
                    pass
                assert working.acquire(blocking=False)
                seen.append(number)
                working.release()

    slots = [taken(turns) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, number, slot) for number, slot in enumerate(slots)]:
            done.result(60)
    assert sorted(seen) == [0] * 20 + [1] * 20 + [2] * 20
    assert {*seen[:6]} == {0, 1, 2}  # none waits until another one has ended
