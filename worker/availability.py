"""Tracks whether one service is available: logs once when it goes down and once when it is back, and retries calls.

Knows no service: every `Unavailable` counts as down. Safe to share between threads.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import Unavailable
from common.log import log_event

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Availability:
    def __init__(self, down_event: str, up_event: str) -> None:
        self._events = {True: down_event, False: up_event}
        self._is_down = False
        self._lock = threading.Lock()

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Mark the service down if the block raises Unavailable, and up if it raises nothing."""
        try:
            yield
        except Unavailable as error:
            self.mark_down(error.message)
            raise
        self.mark_up()

    def mark_down(self, reason: str) -> None:
        self._mark(True, reason=reason)

    def mark_up(self) -> None:
        self._mark(False)

    def retry(self, action: Callable[[], T], give_up: Callable[[], bool]) -> T:
        """Call `action` until the service answers, with growing pauses. Raises Unavailable once `give_up()` is true."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                with self.tracked():
                    return action()
            except Unavailable:
                if give_up():
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _mark(self, is_down: bool, **facts: Any) -> None:
        with self._lock:
            changed, self._is_down = self._is_down != is_down, is_down
        if changed:
            log_event(self._events[is_down], **facts)
