"""How a batch gets on: marks of how many of its images had ended when. Its rate and its stop rule go by them. Pure.

The marks are taken of the counters of its lanes, so no image is looked at; there are a few dozen at most, however large
the batch is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt

SAMPLE_S = 10.0  # between two marks, unless many images end meanwhile
RATE_S = 60.0  # the rate is that of so long, or somewhat longer
WINDOW_STEPS = (
    10  # of the window of a stop rule: it is longer than it should be by one of them at most, and by one sweep
)


class StopRule(BaseModel):
    """When a batch pauses by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    percent: float = Field(ge=0, lt=100, description="It pauses when more than so many percent", examples=[20])
    of_last: StrictInt = Field(
        ge=1, le=100_000, description="of its last images failed or were flagged.", examples=[50]
    )


class Sample(NamedTuple):
    """So many of its images had ended at this moment (seconds since 1970); of them so many as no picture."""

    at: float
    ended: int
    failed: int
    flagged: int


Samples = tuple[Sample, ...]


def add_sample(marks: Sequence[Sample], now: Sample, rule: StopRule | None) -> Samples:
    """The marks to go on with; the same ones if it is too early for another."""
    if not marks or (len(marks) == 1 and marks[0].ended == now.ended):  # until something ends, nothing is measured
        return (now,) if not marks or now.at - marks[0].at >= SAMPLE_S else tuple(marks)
    step = max(1, rule.of_last // WINDOW_STEPS) if rule else 1
    is_far = rule is not None and now.ended - marks[-1].ended >= step
    if not is_far and now.at - marks[-1].at < SAMPLE_S:
        return tuple(marks)
    is_near = rule is not None and len(marks) > 1 and now.ended - marks[-2].ended < step
    found = [*(marks[:-1] if is_near else marks), now]
    while len(found) > 2 and _covers_window(found[1], now, rule):
        found.pop(0)
    return tuple(found)


def _covers_window(mark: Sample, now: Sample, rule: StopRule | None) -> bool:
    """Whether what was before it is not needed any more."""
    is_long_ago = now.at - mark.at >= RATE_S
    return is_long_ago and (rule is None or now.ended - mark.ended >= rule.of_last)


def images_per_minute(marks: Sequence[Sample]) -> float | None:
    """How many images ended in a minute, lately. None while nobody knows."""
    if len(marks) < 2:
        return None
    last = marks[-1]
    first = next((mark for mark in reversed(marks) if last.at - mark.at >= RATE_S), marks[0])
    seconds = last.at - first.at
    return round(60 * (last.ended - first.ended) / seconds, 1) if seconds > 0 else None


def stop_reason(marks: Sequence[Sample], now: Sample, rule: StopRule) -> str | None:
    """Why the batch is to pause, in words; None when it may go on."""
    first = next((mark for mark in reversed(marks) if now.ended - mark.ended >= rule.of_last), None)
    if first is None:
        return None
    images, failed, flagged = now.ended - first.ended, now.failed - first.failed, now.flagged - first.flagged
    if 100 * (failed + flagged) <= rule.percent * images:
        return None
    return (
        f"Of its last {images:,} images {failed:,} failed and {flagged:,} were refused by the safety checker: "
        f"more than the {rule.percent:g} % at which it was to stop."
    )
