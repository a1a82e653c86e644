"""Datasets take turns, also inside a shard: one is written at a time, and after a moment the next in the queue goes on.

What one has written of its shard waits in its upload meanwhile, so its bytes are the same. Knows no dataset.
"""

import threading
import time
from collections import deque
from types import TracebackType

SLOTS = 3  # datasets that take turns: each holds the rows of a shard in memory
TURN_S = 1.0


class Turns:
    def __init__(self, slots: int = SLOTS, seconds: float = TURN_S) -> None:
        """`seconds`: of a turn, while another one is queued."""
        self._slots = slots
        self._seconds = seconds
        self._queue = deque["Slot"]()  # the first one has its turn
        self._until = 0.0
        self._changed = threading.Condition()

    def join(self) -> "Slot | None":
        """Take a slot. None when all are taken."""
        with self._changed:
            if len(self._queue) == self._slots:
                return None
            slot = Slot(self)
            self._queue.append(slot)
            if len(self._queue) == 1:
                self._begin()
            return slot

    def is_of(self, slot: "Slot", wait_s: float) -> bool:
        """Whether it is this one's turn, now or within so many seconds; one that is over goes to the next."""
        with self._changed:
            if self._queue[0] is slot and len(self._queue) > 1 and time.monotonic() > self._until:
                self._queue.rotate(-1)
                self._begin()
            return self._changed.wait_for(lambda: self._queue[0] is slot, wait_s)

    def leave(self, slot: "Slot") -> None:
        with self._changed:
            self._queue.remove(slot)
            self._begin()

    def _begin(self) -> None:
        self._until = time.monotonic() + self._seconds
        self._changed.notify_all()


class Slot:
    """A place in the queue, until its `with` block ends."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def has_turn(self, wait_s: float) -> bool:
        """To be asked again and again: it also gives a turn up that is over. Waits for the next one for so long."""
        return self._turns.is_of(self, wait_s)

    def __enter__(self) -> "Slot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.leave(self)
