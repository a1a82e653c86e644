"""Encoded files have their metadata, other programs can read them, and equal input gives equal bytes."""

import io
import json
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from worker.render.encode import encode

TEXTS = {"recipe": '{"prompt":"红色的圆形，😀"}', "software": "huafang"}
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
SMOOTH = np.add.outer(np.arange(40), np.arange(56))[..., None].astype(np.uint8) + np.array([0, 60, 120], np.uint8)
FORMATS = ("png", "webp", "jpeg")


def opened(data: bytes) -> Any:
    picture: ImageFile.ImageFile = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def texts(data: bytes, format: str) -> Any:
    picture = opened(data)
    if format == "png":
        return picture.text
    if format == "webp":
        return json.loads(picture.getexif()[0x010E])
    return json.loads(b"".join(part for name, part in picture.applist if name == "COM"))


@pytest.fixture(params=["isal", "zlib"])
def deflating_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What deflates a PNG: isal, or where it has no wheel the standard library."""
    if request.param == "zlib":
        monkeypatch.setattr("worker.render.encode.isal_zlib", None)
    else:
        pytest.importorskip("isal")


@pytest.mark.usefixtures("deflating_by")
@pytest.mark.parametrize(("height", "width"), [(40, 56), (1, 1), (1, 56), (40, 1)])
def test_a_png_keeps_every_pixel(height: int, width: int) -> None:
    part = PIXELS[:height, 5 : 5 + width]  # not in one piece in memory
    assert (np.asarray(opened(encode(part, "png", TEXTS))) == part).all()


@pytest.mark.usefixtures("deflating_by")
def test_a_png_passes_strict_readers() -> None:
    """Pillow is lenient when it reads: so check every checksum, and the exact length of the rows."""
    file = encode(PIXELS, "png", TEXTS)
    Image.open(io.BytesIO(file)).verify()
    at = file.index(b"IDAT")
    rows, inflating = file[at + 4 : at + 4 + int.from_bytes(file[at - 4 : at])], zlib.decompressobj()
    height, width = PIXELS.shape[:2]
    assert len(inflating.decompress(rows)) == height * (1 + 3 * width)
    assert (inflating.eof, inflating.unused_data) == (True, b"")
    assert file[at + 4 + len(rows) + 4 :] == b"\0\0\0\0IEND\xae\x42\x60\x82"


@pytest.mark.parametrize("format", FORMATS)
def test_lossy_formats_are_close_to_the_image(format: str) -> None:
    picture = opened(encode(SMOOTH, format, TEXTS))
    assert picture.format == format.upper()
    assert np.abs(np.asarray(picture).astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("side", [8, 9, 71])  # odd lengths are padded in a RIFF
def test_the_file_has_the_metadata(format: str, side: int) -> None:
    assert texts(encode(PIXELS[:side, :side], format, TEXTS), format) == TEXTS


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_may_be_longer_than_a_segment(format: str) -> None:
    long = {"recipe": "红" * 40_000}
    assert texts(encode(PIXELS, format, long), format) == long


@pytest.mark.usefixtures("deflating_by")
@pytest.mark.parametrize("format", FORMATS)
def test_equal_images_are_equal_bytes(format: str) -> None:
    assert encode(PIXELS, format, TEXTS) == encode(PIXELS.copy(), format, dict(TEXTS))


@pytest.mark.usefixtures("deflating_by")
def test_a_png_is_about_as_small_as_pillows() -> None:
    """On what looks like a photograph: structure at every scale, and grain."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize(
                (512, 512), Image.Resampling.BICUBIC
            )
        )
        / 4
        for side in (8, 32, 128)
    ]
    photo = (sum(layers) + rng.normal(30, 4, (512, 512, 3))).clip(0, 255).astype(np.uint8)
    pillows = io.BytesIO()
    Image.fromarray(photo).save(pillows, "PNG")
    assert len(encode(photo, "png", {})) <= 1.1 * len(pillows.getvalue())
