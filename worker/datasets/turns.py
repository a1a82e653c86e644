"""Datasets take turns, also inside a shard: one is written at a time, and after a moment the next in line goes on.

What one has written of its shard waits in its upload meanwhile, so its bytes are the same. Knows no dataset.
"""

import threading
import time
from collections import deque
from types import TracebackType

SEATS = 3  # datasets that take turns: each holds the rows of a shard in memory
TURN_S = 1.0


class Turns:
    def __init__(self, seats: int = SEATS, seconds: float = TURN_S) -> None:
        """`seconds`: of a turn, while another one is in line."""
        self._seats = seats
        self._seconds = seconds
        self._line = deque["Seat"]()  # the first one has its turn
        self._until = 0.0
        self._changed = threading.Condition()

    def join(self) -> "Seat | None":
        """Get in line. None when all seats are taken."""
        with self._changed:
            if len(self._line) == self._seats:
                return None
            seat = Seat(self)
            self._line.append(seat)
            if len(self._line) == 1:
                self._begin()
            return seat

    def is_of(self, seat: "Seat", wait_s: float) -> bool:
        """Whether it is this one's turn, now or within so many seconds; one that is over goes to the next in line."""
        with self._changed:
            if self._line[0] is seat and len(self._line) > 1 and time.monotonic() > self._until:
                self._line.rotate(-1)
                self._begin()
            return self._changed.wait_for(lambda: self._line[0] is seat, wait_s)

    def leave(self, seat: "Seat") -> None:
        with self._changed:
            self._line.remove(seat)
            self._begin()

    def _begin(self) -> None:
        self._until = time.monotonic() + self._seconds
        self._changed.notify_all()


class Seat:
    """A place in the line, until its `with` block ends."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def has_turn(self, wait_s: float) -> bool:
        """To be asked again and again: it also gives a turn up that is over. Waits for the next one for so long."""
        return self._turns.is_of(self, wait_s)

    def __enter__(self) -> "Seat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.leave(self)
