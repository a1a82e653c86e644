"""How many images a worker comes to render together, told with devices that are sums."""

from collections.abc import Callable

import pytest

from worker.pipelines.batch_size import MOST, TRIAL_S, at_size, find_batch_size


class Device:
    """Its clock is what it was asked to paint; what it takes of it, a function of the images says."""

    def __init__(self, seconds: Callable[[int], float], fit: int = 1000) -> None:
        self.seconds, self.fit, self.now, self.tried = seconds, fit, 0.0, list[int]()

    def try_out(self, images: int) -> float | None:
        self.tried.append(images)
        self.now += self.seconds(images)
        return self.seconds(images) if images <= self.fit else None

    def found(self) -> int:
        return find_batch_size(self.try_out, lambda: self.now)


@pytest.mark.parametrize(
    ("device", "images"),
    [
        (Device(lambda images: 0.01), MOST),  # as many as you like in the same time
        (Device(lambda images: 0.01, fit=11), 8),
        (Device(lambda images: 0.01, fit=0), 1),  # not even one: painting will say so
        (Device(lambda images: 0.01 * images), 1),  # one after the other
        (Device(lambda images: 0.01 * max(images, 8)), 8),  # room for eight side by side
        (Device(lambda images: 0.01 * images + 0.01), 8),  # what each call costs beside is soon shared by enough
        (Device(lambda images: 0.01 * images * (2.5 if images == 2 else 1 + 1 / images)), 8),  # disturbed once
    ],
)
def test_it_is_the_smallest_number_that_is_about_the_fastest(device: Device, images: int) -> None:
    assert device.found() == images


def test_nothing_is_tried_beyond_what_does_not_fit() -> None:
    device = Device(lambda images: 0.01, fit=5)
    device.found()
    assert device.tried == [1, 2, 4, 8]


@pytest.mark.parametrize("seconds", [0.1, 1.0, 20.0])
def test_trying_takes_little_more_time_than_it_may(seconds: float) -> None:
    device = Device(lambda images: seconds * images)
    device.found()
    assert device.now <= max(TRIAL_S * 1.5, seconds)


def test_larger_pictures_are_fewer_and_smaller_ones_no_more() -> None:
    usual = 512 * 512
    assert [at_size(8, usual, side * side) for side in (64, 512, 768, 1024, 2048)] == [8, 8, 3, 2, 1]
