"""The watchdog: ends the process when a phase of its work takes longer than it may, or when its device is lost to it.

Nobody can stop a thread that hangs in a driver, and a broken CUDA context fails all that comes after; a new process is
the one cure, and the supervisor starts it. Knows phases and times only; what is still to be done it is told.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from common.config import Settings
from common.log import log_event

EXIT_CODE = 70  # of a process that ended itself
TICK_S = 0.5
FAREWELL_S = 10.0  # for what is still to be done: whatever hangs may make that hang too
CPU_TIMES = 10  # a CPU may take that many times longer


def limits(settings: Settings, device_kind: str) -> dict[str, float]:
    """Seconds that one phase may take."""
    times = CPU_TIMES if device_kind == "cpu" else 1
    return {
        "load": times * settings.load_limit_s,
        "step": times * settings.step_limit_s,
        "decode": times * settings.decode_limit_s,
        "store": settings.store_limit_s,
    }


@dataclass
class Watch:
    phase: str
    ends: float


class Watchdog:
    def __init__(self, limits: Mapping[str, float], farewell: Callable[[str], None]) -> None:
        """`farewell` hears why the process ends, and has FAREWELL_S seconds."""
        self._limits = limits
        self._farewell = farewell
        self._watches: dict[int, Watch] = {}  # by thread
        self._time = 0.0
        self._ending = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def watches(self, phase: str) -> Iterator[Callable[[str], None]]:
        """Watch this thread, which begins a phase now; what is yielded tells that it begins another."""
        me = threading.get_ident()

        def begins(phase: str) -> None:
            self._watches[me] = Watch(phase, self._time + self._limits[phase])

        begins(phase)
        try:
            yield begins
        finally:
            del self._watches[me]

    def gets_on(self) -> None:
        """This thread is at something that may take long, and gets on with it: its limit counts from now."""
        watch = self._watches[threading.get_ident()]
        watch.ends = self._time + self._limits[watch.phase]

    def end(self, reason: str) -> NoReturn:
        """End this process, with a word to those it concerns."""
        with self._ending:  # never let go: once is enough
            log_event("worker_ends_itself", reason=reason)
            farewell = threading.Thread(target=self._farewell, args=(reason,), name="farewell", daemon=True)
            farewell.start()
            farewell.join(FAREWELL_S)
            logging.shutdown()
            os._exit(EXIT_CODE)

    def _run(self) -> None:
        """Counts ticks, not seconds: a process that was frozen is not to blame for the time that went by."""
        last = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            self._time += min(now - last, 2 * TICK_S)
            last = now
            for watch in list(self._watches.values()):
                if self._time > watch.ends:
                    self.end(f"{watch.phase} takes longer than HUAFANG_{watch.phase.upper()}_LIMIT_S allows")
