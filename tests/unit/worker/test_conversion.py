"""Pictures that a dataset has in another format or size: what stays with them, and that their bytes are stable."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from common.datasets.columns import Row
from common.datasets.layout import DatasetPlan
from common.labels.label import packet
from common.labels.reader import read_labels
from common.labels.texts import embedded_texts
from common.storage import sha256
from worker.datasets.conversion import Conversion
from worker.render.encode import encode

FORMATS = ("png", "webp", "jpeg")
TEXTS = {"recipe": '{"prompt":"红色的圆形"}', "worker": "x" * 70_000, "revision": ""}
PIXELS = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 255, (6, 12, 3), np.uint8), 16, 0), 16, 1)
LABEL = packet("0011", "the key", "text2image")


def picture(format: str) -> tuple[bytes, Row]:
    data = encode(PIXELS, format, TEXTS, LABEL)
    return data, {"width": 192, "height": 96, "format": format, "sha256": sha256(data)}


def conversion(**fields: object) -> Conversion:
    found = Conversion.of(DatasetPlan.model_validate(fields))
    assert found is not None
    return found


@pytest.mark.parametrize(("was", "becomes"), list(product(FORMATS, FORMATS)))
def test_texts_and_label_stay_in_every_format(was: str, becomes: str) -> None:
    data, row = picture(was)
    made = conversion(image_format=becomes, resize=48).convert(data, row)
    with Image.open(io.BytesIO(made.data)) as opened:
        assert (opened.format, opened.size) == (becomes.upper(), (96, 48))
    own = {"format": becomes, "width": 96, "height": 48, "sha256": sha256(made.data)}
    assert made.columns == own | {"original_sha256": sha256(data)}
    assert {key: text for key, text in embedded_texts(made.data).items() if key in TEXTS} == TEXTS
    (label,) = read_labels(made.data)
    assert (label.elements or {})["ProduceID"] == "the key"
    assert conversion(image_format=becomes, resize=48).convert(data, row) == made


def test_the_quality_is_that_of_the_plan() -> None:
    data, row = picture("png")
    sizes = [len(conversion(image_format="webp", quality=quality).convert(data, row).data) for quality in (20, 90, 100)]
    assert sizes == sorted(sizes)
    assert conversion(image_format="webp").convert(data, row) == conversion(image_format="webp", quality=90).convert(
        data, row
    )


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_a_quality_writes_anew_what_has_the_format_and_the_size(format: str) -> None:
    data, row = picture(format)
    for fields in ({"image_format": format, "quality": 20}, {"resize": 512, "quality": 20}):
        made = conversion(**fields).convert(data, row)
        assert (made.columns["original_sha256"], made.columns["width"]) == (sha256(data), 192)
        assert made.data == conversion(image_format=format, resize=96, quality=20).convert(data, row).data != data


@pytest.mark.parametrize(
    "fields", [{"resize": 96}, {"resize": 512}, {"image_format": "png"}, {"image_format": "png", "resize": 100}]
)
def test_what_is_so_already_stays_as_it_is(fields: dict[str, object]) -> None:
    data, row = picture("png")
    assert conversion(**fields).convert(data, row) == (data, {})


def test_a_plan_without_conversion_has_none() -> None:
    assert Conversion.of(DatasetPlan(where="steps = 1", shard_images=9)) is None
