"""The watchdog's limits, and what it counts against them."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from common.config import Settings
from worker.watchdog import EXIT_CODE, TICK_S, Watchdog, limits

LIMITS = {"load": 60.0, "step": 10.0, "decode": 20.0, "store": 30.0}


class Ended(Exception):
    pass


class RaisingWatchdog(Watchdog):
    """Raises instead of exiting."""

    def abort_process(self, reason: str) -> NoReturn:
        raise Ended(reason)


class Time:
    """Passes when somebody sleeps, and stands still for good at the end of the drill."""

    def __init__(self, ends: float) -> None:
        self.now, self.ends = 1000.0, 1000.0 + ends
        self.frozen_at: float | None = None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.now >= self.ends:
            raise Exhausted
        self.now += seconds
        if self.frozen_at is not None and self.now >= self.frozen_at:
            self.now, self.frozen_at, self.ends = self.now + 3600, None, self.ends + 3600


class Exhausted(Exception):
    pass


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the watchdog watch for so many seconds; frozen for an hour after some of them."""

    def pass_time(watchdog: Watchdog, seconds: float, frozen_after: float | None = None) -> None:
        clock = Time(seconds)
        clock.frozen_at = clock.now + frozen_after if frozen_after is not None else None
        with monkeypatch.context() as here:
            here.setattr(time, "monotonic", clock.monotonic)
            here.setattr(time, "sleep", clock.sleep)
            with pytest.raises(Exhausted):
                watchdog._run()

    return pass_time


def watchdog() -> RaisingWatchdog:
    return RaisingWatchdog(LIMITS, lambda reason: None)


def test_a_cpu_has_ten_times_as_long_for_all_but_storing() -> None:
    settings = Settings(load_limit_s=600, step_limit_s=120, decode_limit_s=100, store_limit_s=300)
    assert limits(settings, "cuda") == {"load": 600, "step": 120, "decode": 100, "store": 300}
    assert limits(settings, "cpu") == {"load": 6000, "step": 1200, "decode": 1000, "store": 300}


@pytest.mark.parametrize("phase", LIMITS)
def test_a_phase_may_take_its_limit_and_no_longer(pass_time: Any, phase: str) -> None:
    dog = watchdog()
    with dog.watch(phase):
        pass_time(dog, LIMITS[phase])
        with pytest.raises(Ended, match=f"{phase} takes longer than HUAFANG_{phase.upper()}_LIMIT_S allows"):
            pass_time(dog, TICK_S)


def test_each_phase_has_its_own_limit_and_nothing_is_watched_after_the_last(pass_time: Any) -> None:
    dog = watchdog()
    with dog.watch("step") as enter:
        for phase in ("step", "step", "decode"):
            pass_time(dog, 9)
            enter(phase)
        pass_time(dog, 19)
    pass_time(dog, 3600)


def test_keep_alive_restarts_the_limit(pass_time: Any) -> None:
    dog = watchdog()
    with dog.watch("load"):
        for _ in range(3):
            pass_time(dog, 59)
            dog.keep_alive()
        with pytest.raises(Ended):
            pass_time(dog, 61)


def test_time_in_which_the_process_was_frozen_does_not_count(pass_time: Any) -> None:
    dog = watchdog()
    with dog.watch("step"):
        pass_time(dog, 8, frozen_after=4)
        with pytest.raises(Ended):
            pass_time(dog, 3)


def test_a_callback_that_hangs_does_not_prevent_the_exit() -> None:
    code = """if True:
        import time
        from worker import watchdog
        watchdog.ON_EXIT_S = 0.2
        watchdog.Watchdog({}, lambda reason: time.sleep(600)).abort_process("a drill")
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == EXIT_CODE
