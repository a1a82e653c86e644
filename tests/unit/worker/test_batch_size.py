"""How the batch size is found, on devices whose timing is a formula."""

from collections.abc import Callable

import pytest

from worker.pipelines.batch_size import BENCHMARK_S, MAX_IMAGES, at_size, find_batch_size


class Device:
    """Takes `seconds(images)` for so many images, has memory for `fit` of them, and keeps the clock."""

    def __init__(self, seconds: Callable[[int], float], fit: int = 1000) -> None:
        self.seconds, self.fit, self.now, self.tried = seconds, fit, 0.0, list[int]()

    def benchmark(self, images: int) -> float | None:
        self.tried.append(images)
        self.now += self.seconds(images)
        return self.seconds(images) if images <= self.fit else None

    def found(self) -> int:
        return find_batch_size(self.benchmark, lambda: self.now)


@pytest.mark.parametrize(
    ("device", "images"),
    [
        (Device(lambda images: 0.01), MAX_IMAGES),  # any number in the same time
        (Device(lambda images: 0.01, fit=11), 8),
        (Device(lambda images: 0.01, fit=0), 1),  # not even one: rendering will fail
        (Device(lambda images: 0.01 * images), 1),  # proportional
        (Device(lambda images: 0.01 * max(images, 8)), 8),  # eight in parallel
        (Device(lambda images: 0.01 * images + 0.01), 8),  # a fixed cost for each call
        (Device(lambda images: 0.01 * images * (2.5 if images == 2 else 1 + 1 / images)), 8),  # one slow measurement
    ],
)
def test_the_smallest_size_that_is_about_the_fastest_is_chosen(device: Device, images: int) -> None:
    assert device.found() == images


def test_no_size_is_tried_after_one_that_does_not_fit() -> None:
    device = Device(lambda images: 0.01, fit=5)
    device.found()
    assert device.tried == [1, 2, 4, 8]


@pytest.mark.parametrize("seconds", [0.1, 1.0, 20.0])
def test_benchmarks_take_little_more_time_than_they_may(seconds: float) -> None:
    device = Device(lambda images: seconds * images)
    device.found()
    assert device.now <= max(BENCHMARK_S * 1.5, seconds)


def test_larger_images_have_smaller_batches_and_smaller_ones_no_larger() -> None:
    usual = 512 * 512
    assert [at_size(8, usual, side * side) for side in (64, 512, 768, 1024, 2048)] == [8, 8, 3, 2, 1]
