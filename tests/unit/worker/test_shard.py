"""The texts that the encoder wrote into an image are read back, whatever the format."""

import numpy as np
import pytest

from worker.datasets.texts import embedded_texts
from worker.render.encode import encode

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
TEXTS = {"recipe": '{"prompt":"红色的圆形"}', "worker": "x" * 70_000, "revision": ""}


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_texts_are_read_as_they_were_written(format: str) -> None:
    assert embedded_texts(encode(PIXELS, format, TEXTS)) == TEXTS
    assert embedded_texts(encode(PIXELS, format, {})) == {}


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", [0, 3, 9, 21, 60, 3000])
def test_a_damaged_file_has_no_other_texts(format: str, size: int) -> None:
    assert embedded_texts(encode(PIXELS, format, TEXTS)[:size]).keys() <= TEXTS.keys()
