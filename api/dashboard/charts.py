"""A chart of what ended lately, ready to be drawn: a path of bars for each outcome, in columns and images as its units.

Drawn as a few paths instead of some hundred rectangles: it is sent again whenever it has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.queue.stats import Point, Span

OUTCOMES = ("failed", "flagged", "stored")  # from the ground up: failures are seen best where the bars stand
WIDTH, MARGIN = 0.8, 0.1  # of a bar in its column


@dataclass(frozen=True)
class Chart:
    span: Span
    columns: int
    top: int  # of the scale
    peak: int  # the most that ended in one step
    totals: dict[str, int]
    paths: dict[str, str]


def draw(points: Sequence[Point], span: Span) -> Chart:
    peak = max((_height(point) for point in points), default=0)
    top = round_up(peak)
    return Chart(
        span=span,
        columns=max(len(points), 1),
        top=top,
        peak=peak,
        totals={outcome: sum(getattr(point, outcome) for point in points) for outcome in OUTCOMES},
        paths={outcome: _bars(points, outcome, top) for outcome in OUTCOMES},
    )


def round_up(peak: int) -> int:
    """The next number that makes a scale of two even halves: 4, 10, 20, 40, 100, …"""
    decade = 1
    while True:
        for step in (4, 10, 20):
            if step * decade >= peak:
                return step * decade
        decade *= 10


def _bars(points: Sequence[Point], outcome: str, top: int) -> str:
    """The bars of one outcome, each upon those that come before it in OUTCOMES."""
    below = OUTCOMES[: OUTCOMES.index(outcome)]
    drawn = []
    for column, point in enumerate(points):
        if height := getattr(point, outcome):
            ground = top - sum(getattr(point, other) for other in below)
            drawn.append(f"M{column + MARGIN:g} {ground}v-{height}h{WIDTH}v{height}z")
    return "".join(drawn)


def _height(point: Point) -> int:
    return sum(getattr(point, outcome) for outcome in OUTCOMES)
