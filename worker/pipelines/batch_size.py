"""How many images one pipeline call should render, found by benchmarking. Knows no device and no model.

Sizes are doubled while the images fit into memory. The result is the smallest size that is about as fast per image as
the fastest: a larger one gains nothing and delays the next job.
"""

import time
from collections.abc import Callable

MAX_IMAGES = 32
TOLERANCE = 1.1  # seconds per image of the chosen size ÷ those of the fastest
BENCHMARK_S = 3.0  # for all benchmarks of a model together, while its first job waits


def find_batch_size(benchmark: Callable[[int], float | None], clock: Callable[[], float] = time.monotonic) -> int:
    """`benchmark(images)` gives the seconds for so many images together, None where they do not fit into memory."""
    start, images = clock(), 1
    seconds_per_image: dict[int, float] = {}
    while images <= MAX_IMAGES and clock() - start <= BENCHMARK_S / 2:  # each takes up to as long as all before it
        seconds = benchmark(images)
        if seconds is None:
            break
        seconds_per_image[images] = seconds / images
        images *= 2
    fastest = min(seconds_per_image.values(), default=0.0)
    return next((images for images, seconds in seconds_per_image.items() if seconds <= TOLERANCE * fastest), 1)


def at_size(batch_size: int, default_pixels: int, pixels: int) -> int:
    """The batch size for images of another size, by pixels: at least 1, at most the one of the default size."""
    return max(1, batch_size * default_pixels // max(default_pixels, pixels))
