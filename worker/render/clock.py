"""The clock of this machine beside the database's: whether it is so wrong that the worker had better stop claiming.

Leases and back-offs go by the database's clock alone, so a wrong one here loses nothing. But ids, log lines and the
signatures of requests to the image store are made by this one: they mislead, or are refused.
"""

TOLERANCE_S = 5.0
RIGHT_BEATS = 3  # that its clock must be right before a worker goes on: a clock being set may jump more than once


class Clock:
    def __init__(self) -> None:
        self.off_s = 0.0  # ahead; behind where it is negative
        self._right_beats = RIGHT_BEATS

    def compare(self, before: float, theirs: float, after: float) -> None:
        """`theirs` was read between `before` and `after`: only what lies outside of that is certain to be wrong."""
        self.off_s = max(before - theirs, 0) + min(after - theirs, 0)
        self._right_beats = 0 if self.is_wrong else self._right_beats + 1

    @property
    def is_wrong(self) -> bool:
        return abs(self.off_s) > TOLERANCE_S

    @property
    def is_right_again(self) -> bool:
        return self._right_beats >= RIGHT_BEATS

    def complaint(self) -> str:
        way = "ahead of" if self.off_s > 0 else "behind"
        return f"its clock is {abs(self.off_s):.0f} s {way} the database's"
