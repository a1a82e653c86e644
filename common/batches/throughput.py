"""The throughput of a batch: samples of how many of its images had ended when, its rate, and its stop rule. Pure.

The samples are taken from the counters of its lanes, so no image is read. There are a few dozen at most, however large
the batch is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from common.batches import sentence
from common.sentences import Sentence

SAMPLE_S = 10.0  # between two samples, unless many images end meanwhile
RATE_S = 60.0  # the rate is that of so many seconds, or of somewhat more
WINDOW_STEPS = 10  # samples in the window of a stop rule, which is at most one step and one sweep too long


class StopRule(BaseModel):
    """When a batch pauses by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    percent: float = Field(
        strict=True, ge=0, lt=100, description="It pauses when more than so many percent", examples=[20]
    )
    of_last: StrictInt = Field(
        ge=1, le=100_000, description="of its last images failed or were flagged.", examples=[50]
    )


class Sample(NamedTuple):
    """How many images had ended `at` this moment (seconds since 1970), and how many of those failed or were flagged."""

    at: float
    ended: int
    failed: int
    flagged: int


Samples = tuple[Sample, ...]


def add_sample(samples: Sequence[Sample], now: Sample, rule: StopRule | None) -> Samples:
    """The samples with `now` and without those that are not needed any more; unchanged if it is too early."""
    if not samples or (len(samples) == 1 and samples[0].ended == now.ended):  # the time before the first image
        return (now,) if not samples or now.at - samples[0].at >= SAMPLE_S else tuple(samples)
    step = max(1, rule.of_last // WINDOW_STEPS) if rule else 1
    is_step_done = rule is not None and now.ended - samples[-1].ended >= step
    if not is_step_done and now.at - samples[-1].at < SAMPLE_S:
        return tuple(samples)
    replaces_last = rule is not None and len(samples) > 1 and now.ended - samples[-2].ended < step
    found = [*(samples[:-1] if replaces_last else samples), now]
    while len(found) > 2 and _covers_window(found[1], now, rule):
        found.pop(0)
    return tuple(found)


def _covers_window(sample: Sample, now: Sample, rule: StopRule | None) -> bool:
    """Whether the samples before this one are not needed any more."""
    is_long_ago = now.at - sample.at >= RATE_S
    return is_long_ago and (rule is None or now.ended - sample.ended >= rule.of_last)


def images_per_minute(samples: Sequence[Sample]) -> float | None:
    """How many images ended per minute in the last RATE_S. None while there is one sample or none."""
    if len(samples) < 2:
        return None
    last = samples[-1]
    first = next((sample for sample in reversed(samples) if last.at - sample.at >= RATE_S), samples[0])
    seconds = last.at - first.at
    return round(60 * (last.ended - first.ended) / seconds, 1) if seconds > 0 else None


def stop_reason(samples: Sequence[Sample], now: Sample, rule: StopRule) -> Sentence | None:
    """Why the batch must pause. None if it may go on."""
    first = next((sample for sample in reversed(samples) if now.ended - sample.ended >= rule.of_last), None)
    if first is None:
        return None
    images, failed, flagged = now.ended - first.ended, now.failed - first.failed, now.flagged - first.flagged
    if 100 * (failed + flagged) <= rule.percent * images:
        return None
    return sentence("stop_rule_exceeded", images=images, failed=failed, flagged=flagged, percent=rule.percent)
