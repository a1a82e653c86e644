"""Bar charts as SVG paths: the images that ended in an hour or a day, by outcome, and those that were stored each day.

The unit of x is a step of the chart, the unit of y an image. A few paths instead of some hundred rectangles: the chart
is sent again whenever it changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.queue.stats import Point, Span

OUTCOMES = ("failed", "flagged", "stored")  # from the bottom up: failures are seen best on the axis
WIDTH, MARGIN = 0.8, 0.1  # of a bar in its step


@dataclass(frozen=True)
class Chart:
    span: Span
    columns: int
    top: int  # of the scale
    peak: int  # the most images that ended in one step
    totals: dict[str, int]
    paths: dict[str, str]


@dataclass(frozen=True)
class Bars:
    """A chart of one number for each step."""

    columns: int
    top: int
    peak: int
    path: str


def build_chart(points: Sequence[Point], span: Span) -> Chart:
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


def build_bars(heights: Sequence[int]) -> Bars:
    peak = max(heights, default=0)
    top = round_up(peak)
    path = "".join(_bar(column, top, height) for column, height in enumerate(heights) if height)
    return Bars(max(len(heights), 1), top, peak, path)


def round_up(peak: int) -> int:
    """The next number of a scale that halves into whole numbers: 4, 10, 20, 40, 100, …"""
    decade = 1
    while True:
        for step in (4, 10, 20):
            if step * decade >= peak:
                return step * decade
        decade *= 10


def _bars(points: Sequence[Point], outcome: str, top: int) -> str:
    """The bars of one outcome, stacked on those of the outcomes before it."""
    below = OUTCOMES[: OUTCOMES.index(outcome)]
    bars = []
    for column, point in enumerate(points):
        if height := getattr(point, outcome):
            bars.append(_bar(column, top - sum(getattr(point, other) for other in below), height))
    return "".join(bars)


def _bar(column: int, bottom: int, height: int) -> str:
    return f"M{column + MARGIN:g} {bottom}v-{height}h{WIDTH}v{height}z"


def _height(point: Point) -> int:
    return sum(getattr(point, outcome) for outcome in OUTCOMES)
