"""Capacity: how many images one pipeline call had best render together. Found by trying; knows no device and no model.

The number is doubled for as long as the images fit into the memory. Then it is the smallest that is about as fast as
the fastest: more would gain nothing, and make whoever comes next wait.
"""

import time
from collections.abc import Callable

MOST = 32
ABOUT = 1.1  # seconds per image of the chosen number ÷ those of the fastest
TRIAL_S = 3.0  # for all tries together: the first job waits for them


def find_batch_size(try_out: Callable[[int], float | None], clock: Callable[[], float] = time.monotonic) -> int:
    """`try_out` gives the seconds that so many images take together, None when they do not fit."""
    began, images = clock(), 1
    seconds_per_image: dict[int, float] = {}
    while images <= MOST and clock() - began <= TRIAL_S / 2:  # each try may take as long as all before it
        seconds = try_out(images)
        if seconds is None:
            break
        seconds_per_image[images] = seconds / images
        images *= 2
    fastest = min(seconds_per_image.values(), default=0.0)
    return next((images for images, seconds in seconds_per_image.items() if seconds <= ABOUT * fastest), 1)


def at_size(capacity: int, usual_pixels: int, pixels: int) -> int:
    """Images of another size that fit where `capacity` of the usual size do. Never more than those."""
    return max(1, capacity * usual_pixels // max(usual_pixels, pixels))
