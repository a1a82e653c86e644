"""The trial picture: its recipe, its thumbnail, and when two show the same."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.stories import CATALOG
from worker.models.trial import SIDE, TOLERANCE, differ, recipe, thumbnail

MINI = CATALOG.get("mini-zh")
RANDOM = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_a_thumbnail_has_the_means_of_blocks() -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:4, :8] = 100
    pixels[:2, 8:16] = 100
    found = np.frombuffer(thumbnail(pixels), np.uint8).reshape(SIDE, SIDE, 3)
    assert found[0, :3].tolist() == [3 * [100], 3 * [50], 3 * [0]]
    assert not found[1:].any()


def test_any_size_gives_a_thumbnail_of_one_size() -> None:
    for height, width in ((64, 64), (72, 120), (512, 768)):
        assert len(thumbnail(np.zeros((height, width, 3), np.uint8))) == SIDE * SIDE * 3


@pytest.mark.parametrize(("levels", "is_other"), [(0, False), (TOLERANCE, False), (TOLERANCE + 1, True)])
def test_pictures_are_other_ones_from_some_levels_on(levels: int, is_other: bool) -> None:
    known = np.full((SIDE, SIDE, 3), 100, np.uint8)
    for sign in (1, -1):
        found = known.copy()
        found[3, 4, 1] = 100 + sign * levels
        assert differ(known.tobytes(), found.tobytes()) == is_other


def test_another_picture_is_another_one_and_so_is_its_negative() -> None:
    known = thumbnail(RANDOM)
    assert not differ(known, known)
    assert differ(known, thumbnail(np.rot90(RANDOM)))
    assert differ(known, thumbnail(255 - RANDOM))


def test_the_trial_is_small_unless_the_model_is_compiled() -> None:
    small, compiled = recipe(MINI), recipe(replace(MINI, compile=True))
    assert (small.width, small.height, small.steps) == (MINI.min_side, MINI.min_side, 2)
    assert (compiled.width, compiled.height) == (MINI.width, MINI.height)
