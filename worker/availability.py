"""A service that is away: said once when it goes and once when it is back, and what waits for it tries again.

Knows no service by itself: whatever raises `Unavailable` counts as away. Safe to share between threads.
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
    def __init__(self, away_event: str, back_event: str) -> None:
        self._events = {True: away_event, False: back_event}
        self._is_away = False
        self._lock = threading.Lock()

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Let the success or failure of what happens here say whether the service is away."""
        try:
            yield
        except Unavailable as error:
            self.began(error.message)
            raise
        self.ended()

    def began(self, reason: str) -> None:
        self._now(True, reason=reason)

    def ended(self) -> None:
        self._now(False)

    def insist(self, action: Callable[[], T], unless: Callable[[], bool]) -> T:
        """Do it, again and again while the service is away. Raises Unavailable once `unless()` is true."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                with self.noticed():
                    return action()
            except Unavailable:
                if unless():
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _now(self, is_away: bool, **facts: Any) -> None:
        with self._lock:
            changed, self._is_away = self._is_away != is_away, is_away
        if changed:
            log_event(self._events[is_away], **facts)
