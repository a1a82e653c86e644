"""The samples of a batch's progress: always few, and enough for its rate and its stop rule."""

import json
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from common.batches.throughput import (
    WINDOW_STEPS,
    Sample,
    Samples,
    StopRule,
    add_sample,
    images_per_minute,
    stop_reason,
)

START: Samples = (Sample(0, 0, 0, 0),)
RULE = StopRule(percent=20, of_last=50)
Steps = Iterable[tuple[float, int, int]]  # seconds since the last step, images that ended since, those that failed

steps = st.lists(
    st.tuples(st.floats(0.1, 100), st.integers(0, 80), st.integers(0, 80)).map(lambda one: (*one[:2], min(one[1:]))),
    max_size=120,
)


def sampled(steps: Steps, rule: StopRule | None = RULE) -> Iterator[tuple[Samples, Sample]]:
    """The samples before each look, and what is seen in it."""
    samples, now = START, START[0]
    for seconds, images, failed in steps:
        now = Sample(now.at + seconds, now.ended + images, now.failed + failed, 0)
        yield samples, now
        samples = add_sample(samples, now, rule)


@given(steps, st.sampled_from([None, RULE, StopRule(percent=0, of_last=1), StopRule(percent=5, of_last=1000)]))
def test_there_are_few_samples_in_their_order(steps: Steps, rule: StopRule | None) -> None:
    for samples, _ in sampled(steps, rule):
        assert len(samples) <= 10 + 2 * WINDOW_STEPS + 600  # a minute of steps, a tenth of a second apart
        assert list(samples) == sorted(samples)
        assert tuple(Sample(*sample) for sample in json.loads(json.dumps(samples))) == samples


@given(st.lists(st.tuples(st.floats(1, 1000), st.integers(0, 3), st.just(0)), max_size=200))
def test_a_slow_batch_has_few_too(steps: Steps) -> None:
    for samples, _ in sampled(steps, StopRule(percent=5, of_last=1000)):
        assert len(samples) <= 2 * WINDOW_STEPS


@given(steps)
def test_the_window_is_no_shorter_than_it_should_be_and_hardly_longer(steps: Steps) -> None:
    most = max((images for _, images, _ in steps), default=0)
    for samples, now in sampled(steps):
        window = [now.ended - sample.ended for sample in samples if now.ended - sample.ended >= RULE.of_last]
        if now.ended >= RULE.of_last:
            assert RULE.of_last <= min(window) <= RULE.of_last * (1 + 2 / WINDOW_STEPS) + 2 * most
        else:
            assert window == []


def reasons(steps: Steps, rule: StopRule = RULE) -> list[str | None]:
    return [stop_reason(samples, now, rule) for samples, now in sampled(steps, rule)]


def test_a_batch_stops_when_more_than_so_many_percent_failed() -> None:
    assert reasons([(2, 5, 1)] * 40) == [None] * 40  # just as many
    words = reasons([(2, 5, 0)] * 20 + [(2, 5, 5)] * 3)
    assert words[:22] == [None] * 22
    assert words[22] == (
        "Of its last 50 images 15 failed and 0 were refused by the safety checker: more than the 20 % at which it was "
        "to stop."
    )


def test_few_images_are_not_judged() -> None:
    assert reasons([(2, 49, 49)]) == [None]
    assert reasons([(2, 49, 49), (2, 1, 0)])[1] is not None


def test_what_was_flagged_counts_too() -> None:
    assert stop_reason(START, Sample(1, 50, 5, 6), RULE) is not None
    assert stop_reason(START, Sample(1, 50, 5, 5), RULE) is None


def test_one_failure_can_be_too_much() -> None:
    assert reasons([(2, 30, 0), (2, 30, 1)], StopRule(percent=0, of_last=1)) == [
        None,
        "Of its last 30 images 1 failed and 0 were refused by the safety checker: more than the 0 % at which it was "
        "to stop.",
    ]


def test_there_is_no_rate_before_an_image_has_ended() -> None:
    idle = add_sample(START, Sample(3600, 0, 0, 0), None)
    assert (idle, images_per_minute(idle)) == ((Sample(3600, 0, 0, 0),), None)
    assert images_per_minute(add_sample(idle, Sample(3612, 4, 0, 0), None)) == 20


def test_the_rate_is_of_the_last_minute() -> None:
    fast_then_slow = [(5, 50, 0)] * 30 + [(5, 5, 0)] * 15
    *_, (samples, now) = sampled(fast_then_slow)
    assert images_per_minute(add_sample(samples, now, RULE)) == 60
