"""What was computed from texts, remembered up to a number of bytes: their authors choose how long they are. Pure."""

import sys
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

ENTRY_BYTES = 200  # of an entry beside its text and its value


class TextCache(Generic[T]):
    """Values by their texts. Emptied when the next entry would exceed its bytes. Safe to share between threads."""

    def __init__(self, most_bytes: int, size: Callable[[T], int]) -> None:
        """`size` gives the bytes of a value."""
        self._most_bytes = most_bytes
        self._size = size
        self._values: dict[str, T] = {}
        self._lock = Lock()
        self.bytes = 0

    def get(self, text: str) -> T | None:
        return self._values.get(text)

    def put(self, text: str, value: T) -> None:
        size = ENTRY_BYTES + sys.getsizeof(text) + self._size(value)
        with self._lock:
            if text in self._values:
                return
            if self.bytes + size > self._most_bytes:
                self._values.clear()
                self.bytes = 0
            if size <= self._most_bytes:
                self._values[text] = value
                self.bytes += size
