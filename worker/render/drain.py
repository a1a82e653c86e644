"""Whether this worker drains (it claims and starts nothing more), and until when it may finish what it holds.

An operator pauses it from the dashboard or the command line, its supervisor stops it, the watchdog ends it at once; and
it drains while it is quarantined. Knows no microbatch. Safe to share between threads.
"""

import threading
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import TypeVar

from common.errors import Interrupted
from common.sentences import Sentence
from worker.render import sentence
from worker.render.quarantine import Quarantine

T = TypeVar("T")

NEVER = float("inf")


class Drain:
    def __init__(self, drain_s: float, quarantine: Quarantine) -> None:
        self._drain_s = drain_s
        self._quarantine = quarantine
        self._is_paused = False
        self._is_exiting = False
        self._stopping = threading.Event()
        self._pause_deadline = self.stop_deadline = NEVER

    @property
    def is_active(self) -> bool:
        return self._is_paused or self._is_exiting or self.is_stopping or self._quarantine.is_active

    @property
    def reason(self) -> Sentence:
        """Why what was claimed is given back."""
        return sentence("quarantined") if self._quarantine.is_active else sentence("draining")

    @property
    def is_stopping(self) -> bool:
        """Drains for good: the process ends afterwards."""
        return self._stopping.is_set()

    @property
    def deadline(self) -> float:
        """When what is not finished has to be released, by the monotonic clock."""
        return min(self._pause_deadline, self.stop_deadline)

    def pause(self, paused: bool) -> bool:
        """Drain until further notice, or go on. False if it was so already: that moves no deadline."""
        if paused == self._is_paused:
            return False
        self._pause_deadline = time.monotonic() + self._drain_s if paused else NEVER
        self._is_paused = paused
        return True

    def stop(self) -> bool:
        """Drain for good. False when called again: the deadline is then now."""
        if self.is_stopping:
            self.stop_deadline = time.monotonic()
            return False
        self.stop_deadline = time.monotonic() + self._drain_s
        self._stopping.set()
        return True

    def exit(self) -> None:
        """Claim and start nothing more: the process is about to exit."""
        self._is_exiting = True

    def wait_for_stop(self, seconds: float) -> bool:
        return self._stopping.wait(seconds)

    def wait_for(self, running: "Future[T]") -> T:
        """What the render thread gives. Raises Interrupted if this worker stops meanwhile: a load cannot be stopped."""
        while wait_for([running], 0.2).not_done:
            if self.is_stopping:
                raise Interrupted(sentence("draining"))
        return running.result()
