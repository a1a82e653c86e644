"""AI labels: each format carries one, other programs find it, the pixels stay, and equal pictures are equal bytes."""

import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from common.config import Settings
from common.labels.label import ELEMENTS, label_problems, packet
from common.labels.reader import labelled_xmp, read_labels
from common.labels.texts import embedded_texts
from common.recipes.picture_key import DrawnWith
from common.recipes.recipe import Recipe
from worker.datasets.samples import grid
from worker.labels.labeller import Labeller
from worker.labels.mark import draw_mark
from worker.render.encode import encode

FORMATS = ("png", "webp", "jpeg")
PRODUCER = "001191110102MAD55U9H0F10002"
TEXTS = {"recipe": '{"prompt":"红色的圆形"}', "software": "Huafang"}
DRAWN_WITH = DrawnWith("some weights")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def labeller(mode: str) -> Labeller:
    return Labeller(Settings(ai_label=mode, ai_label_producer=PRODUCER))


def recipe(**fields: Any) -> Recipe:
    drawn = {"prompt": "红色的圆形", "negative_prompt": "", "model": "mini-zh", "width": 56, "height": 40, "steps": 1}
    taken = {"scheduler": "ddim", "guidance": 1.0, "seeds": (7, 8), "mode": "text2image", "format": "png"}
    return Recipe(**{**drawn, **taken, **fields})


def file(format: str, mode: str = "implicit", index: int = 0) -> bytes:
    pixels, xmp = labeller(mode).label(PIXELS, DRAWN_WITH.key(recipe(), index), "text2image")
    return encode(pixels, format, TEXTS, xmp)


def pixels_of(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_has_one_complete_label(format: str) -> None:
    (found,) = read_labels(file(format))
    number = DRAWN_WITH.key(recipe(), 0)
    wanted = ("1", PRODUCER, number, "", PRODUCER, number, "")
    assert found.elements == dict(zip(ELEMENTS, wanted, strict=True))
    assert label_problems([found]) == []


@pytest.mark.parametrize("format", FORMATS)
def test_other_programs_read_it_as_xmp(format: str) -> None:
    """Pillow finds the packet where the format has its place, and any XML parser the property."""
    with Image.open(io.BytesIO(file(format))) as image:
        image.load()
        known = image.info["xmp"]
    root = ElementTree.fromstring(known)
    tags = {element.tag: element.text for element in root.iter()}
    assert (tags["{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC"] or "").startswith('{"Label":"1","ContentProducer":"')
    iptc = tags["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert iptc == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("format", FORMATS)
def test_an_implicit_label_leaves_every_pixel_and_all_other_metadata(format: str) -> None:
    plain, labelled = file(format, "off"), file(format)
    assert (pixels_of(labelled) == pixels_of(plain)).all()
    texts = embedded_texts(labelled)
    assert {name: texts[name] for name in TEXTS} == TEXTS
    assert len(labelled) - len(plain) < 1_000


@pytest.mark.parametrize("format", FORMATS)
def test_without_the_setting_a_file_is_what_it_was(format: str) -> None:
    assert read_labels(file(format, "off")) == []
    assert file(format, "off") == encode(PIXELS, format, TEXTS)


@pytest.mark.parametrize("mode", ["implicit", "visible"])
@pytest.mark.parametrize("format", FORMATS)
def test_equal_pictures_are_equal_bytes(format: str, mode: str) -> None:
    assert file(format, mode) == file(format, mode)
    assert file(format, mode) != file(format, mode, index=1)


def test_a_redrawn_picture_says_so() -> None:
    _, xmp = labeller("implicit").label(PIXELS, "a key", "image2image")
    assert xmp is not None
    assert b"/compositeWithTrainedAlgorithmicMedia<" in xmp


@pytest.mark.parametrize("side", [(512, 512), (512, 768), (1024, 512), (64, 64)])
def test_a_visible_label_is_in_the_corner_and_as_high_as_the_standard_wants(side: tuple[int, int]) -> None:
    before = np.full((*side, 3), 200, np.uint8)
    after = draw_mark(before)
    rows, columns = np.nonzero((after == 255).all(axis=2))  # the strokes
    height = rows.max() - rows.min() + 1
    assert 0.05 * min(side) <= height <= max(0.065 * min(side), 14), "of the shorter side"
    assert rows.min() > side[0] * 0.6
    assert columns.max() < side[1] - 1
    assert (before == 200).all()
    changed = (after != before).any(axis=2)
    assert changed.mean() < 0.15
    assert not changed[: side[0] // 2].any()


@pytest.mark.parametrize("shade", [0, 255])
def test_a_visible_label_shows_on_any_ground(shade: int) -> None:
    marked = draw_mark(np.full((512, 512, 3), shade, np.uint8)).astype(int)
    assert marked.max() - marked.min() > 100


@pytest.mark.parametrize("side", [(8, 8), (16, 200), (200, 16), (1, 1)])
def test_a_visible_label_fits_into_any_picture(side: tuple[int, int]) -> None:
    assert draw_mark(np.zeros((*side, 3), np.uint8)).shape == (*side, 3)


def test_a_sheet_of_samples_keeps_a_label() -> None:
    plain, labelled = file("png", "off"), file("webp")
    assert labelled_xmp(grid([plain])) is None
    assert read_labels(grid([plain, labelled]))[0].elements == read_labels(labelled)[0].elements


@pytest.mark.parametrize("producer", ["", "画坊", "with space", 'a"b', "back\\slash", "x" * 201])
def test_a_label_needs_the_code_of_a_provider(producer: str) -> None:
    with pytest.raises(ValidationError, match="without spaces"):
        Settings(ai_label="implicit", ai_label_producer=producer)
    assert Settings(ai_label_producer=producer).ai_label == "off"


def test_a_code_with_signs_of_xml_is_read_back() -> None:
    data = encode(PIXELS, "png", {}, packet("a<b>&c'", "1", "inpaint"))
    (found,) = read_labels(data)
    assert (found.elements or {})["ContentProducer"] == "a<b>&c'"
