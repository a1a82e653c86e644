"""The watchdog: exits the process when a phase of its work exceeds its limit, or when its device is lost.

Nothing can stop a thread that hangs in a driver, and a broken CUDA context fails every later call. Only a new process
helps, and the supervisor starts it. Knows phases and times; what has to be done before the exit is a callback.
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
from worker import sentence

EXIT_CODE = 70
TICK_S = 0.5
ON_EXIT_S = 10.0  # for the callback: whatever hangs may make it hang too
CPU_FACTOR = 10  # a CPU may take that many times longer


def limits(settings: Settings, device_kind: str) -> dict[str, float]:
    """Seconds that each phase may take."""
    factor = CPU_FACTOR if device_kind == "cpu" else 1
    return {
        "load": factor * settings.load_limit_s,
        "step": factor * settings.step_limit_s,
        "decode": factor * settings.decode_limit_s,
        "store": settings.store_limit_s,
    }


@dataclass
class Watch:
    phase: str
    deadline: float


class Watchdog:
    def __init__(self, limits: Mapping[str, float], on_exit: Callable[[str], None]) -> None:
        """`on_exit` gets the reason for the exit, and may take ON_EXIT_S seconds."""
        self._limits = limits
        self._on_exit = on_exit
        self._watches: dict[int, Watch] = {}  # by thread
        self._time = 0.0
        self._exiting = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def watch(self, phase: str) -> Iterator[Callable[[str], None]]:
        """Watch this thread while the block runs; call what is yielded with the name of the next phase."""
        thread = threading.get_ident()

        def enter(phase: str) -> None:
            self._watches[thread] = Watch(phase, self._time + self._limits[phase])

        enter(phase)
        try:
            yield enter
        finally:
            del self._watches[thread]

    def keep_alive(self) -> None:
        """Restart the limit of this thread's phase: a long download, say, that makes progress."""
        watch = self._watches[threading.get_ident()]
        watch.deadline = self._time + self._limits[watch.phase]

    def abort_process(self, reason: str) -> NoReturn:
        """Run the callback, then exit this process with EXIT_CODE."""
        with self._exiting:  # never released: a second thread must not run the callback again
            log_event("process_aborts", reason=reason)
            on_exit = threading.Thread(target=self._on_exit, args=(reason,), name="on_exit", daemon=True)
            on_exit.start()
            on_exit.join(ON_EXIT_S)
            logging.shutdown()
            os._exit(EXIT_CODE)

    def _run(self) -> None:
        """Count ticks, not seconds: time in which the process was frozen does not count."""
        last = time.monotonic()
        while True:
            time.sleep(TICK_S)
            now = time.monotonic()
            self._time += min(now - last, 2 * TICK_S)
            last = now
            for watch in list(self._watches.values()):
                if self._time > watch.deadline:
                    variable = f"HUAFANG_{watch.phase.upper()}_LIMIT_S"
                    self.abort_process(sentence("phase_too_long", phase=watch.phase, variable=variable))
