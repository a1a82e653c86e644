"""Recognises from the pixels what an image shows: the colour and the shape of its object, and the background.

Knows the palette and the outlines of the drawings, and no model. The object is what differs from the border's colour;
it is compared with the outline of every shape at one size. `look` sees every object of a picture, and landscapes.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from training.drawing import EVENING, GRASS, NIGHT, RGB, SKY, WATER, outline
from training.world import SHAPES

BORDER = 4
FIT = 48
PART_COUNTS = 0.93  # a match without some part counts less
NAMES = tuple(RGB)
PALETTE = np.array([RGB[name] for name in NAMES], float)
LANDSCAPES = {"meadow": (SKY, GRASS), "sea": (EVENING, WATER), "night": (NIGHT, NIGHT)}
CLOSE = 40.0  # in levels, a landscape's colours to those in the picture
SMALLEST = 60  # pixels of the only object
SMALLEST_OF_MANY = 150  # pixels of one of several; the stars of a night have fewer


@dataclass(frozen=True)
class Verdict:
    colour: str | None
    background: str
    shape: str | None  # None: no object
    likeness: float = 0.0


@dataclass(frozen=True)
class Thing:
    """One object, and the middle of its box in pixels."""

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class View:
    background: str  # a colour or a landscape
    things: tuple[Thing, ...]  # from left to right


def look(pixels: np.ndarray) -> View:
    """All objects of an image, if they do not touch each other."""
    image = pixels.astype(float)
    landscape = _landscape(image)
    behind = np.array(LANDSCAPES[landscape], float) if landscape else _border_colour(image)[None]
    found = [_thing(image, piece) for piece in _pieces(_differing(image, behind))]
    background = landscape or NAMES[int(_nearest(behind[0]))]
    return View(background, tuple(sorted(found, key=lambda thing: thing.x)))


def _landscape(image: np.ndarray) -> str | None:
    above, below = (np.median(rows.reshape(-1, 3), 0) for rows in (image[:BORDER], image[-BORDER:]))
    for name, colours in LANDSCAPES.items():
        if all(np.linalg.norm(row - colour) < CLOSE for row, colour in zip((above, below), colours, strict=True)):
            return name
    return None


def _differing(image: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The mask of what differs from all of these colours."""
    distance = np.linalg.norm(image[:, :, None] - behind, axis=3).min(2)
    return np.asarray(distance > max(26.0, 0.3 * float(np.percentile(distance, 98))))


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The mask of each object. Objects whose edges touch by a pixel or two are still two."""
    pieces, count = ndimage.label(ndimage.binary_erosion(mask), np.ones((3, 3)))
    whole = [ndimage.binary_dilation(pieces == number, iterations=2) & mask for number in range(1, count + 1)]
    largest = max((piece.sum() for piece in whole), default=0)
    return [piece for piece in whole if piece.sum() > max(SMALLEST_OF_MANY, 0.12 * largest)]


def _thing(image: np.ndarray, mask: np.ndarray) -> Thing:
    fitted = _fitted(mask)
    rows, columns = np.nonzero(mask)
    x, y = (float(places.min() + places.max()) / 2 for places in (columns, rows))
    shape = max(SHAPES, key=lambda name: _likeness(fitted, name))
    if shape == "house":
        mask = mask & (np.arange(len(mask)) > y)[:, None]  # without its roof, which is darker
    return Thing(shape, _colour(image, mask), x, y)


def judge(pixels: np.ndarray) -> Verdict:
    """Judge an image of one object (rows × columns × RGB, 0 to 255)."""
    image = pixels.astype(float)
    behind = _border_colour(image)
    background = NAMES[int(_nearest(behind))]
    mask = _standing_out(image, behind)
    if mask.sum() < SMALLEST:
        return Verdict(None, background, None)
    likeness = {shape: _likeness(_fitted(mask), shape) for shape in SHAPES}
    shape = max(likeness, key=lambda name: likeness[name])
    return Verdict(_colour(image, mask), background, shape, likeness[shape])


def _border_colour(image: np.ndarray) -> np.ndarray:
    inside = np.zeros(image.shape[:2], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.asarray(np.median(image[~inside], 0))


def _standing_out(image: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The mask of the object, without specks."""
    distance = np.linalg.norm(image - behind, axis=2)
    mask = distance > max(26.0, 0.3 * float(np.percentile(distance, 98)))
    pieces, count = ndimage.label(mask)
    sizes = ndimage.sum(mask, pieces, range(1, count + 1))
    large = [place + 1 for place, size in enumerate(sizes) if size > max(12, 0.06 * sizes.max())]
    return np.asarray(np.isin(pieces, large))


def _colour(image: np.ndarray, mask: np.ndarray) -> str:
    """The most frequent colour, without the edge."""
    core = ndimage.binary_erosion(mask, iterations=2 if mask.sum() > 1500 else 1)
    nearest = _nearest(image[core if core.sum() > 40 else mask])
    return NAMES[int(np.bincount(nearest, minlength=len(NAMES)).argmax())]


def _nearest(colours: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(colours[..., None, :] - PALETTE, axis=-1).argmin(-1))


def _fitted(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box, scaled to one size."""
    rows, columns = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut * 255
    return np.asarray(Image.fromarray(square).resize((FIT, FIT), Image.Resampling.BILINEAR)) > 127


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _likeness(mask: np.ndarray, shape: str) -> float:
    parts = [PART_COUNTS * _overlap(mask, part) for part in _parts(shape)]
    return max([_overlap(mask, _whole(shape)), *parts])


@cache
def _whole(shape: str) -> np.ndarray:
    return _fitted(_white(shape) > 0)


@cache
def _parts(shape: str) -> tuple[np.ndarray, ...]:
    """The outline without parts that may have another colour: trunk, stem, eyes."""
    if shape not in ("tree", "flower", "cat"):
        return ()
    white = _white(shape) == 2
    return _fitted(white), _fitted(ndimage.binary_fill_holes(white))


def _white(shape: str) -> np.ndarray:
    """The shape drawn in white on black: 2 where it is white, 1 where it has some other colour."""
    drawn = outline(shape)
    return (drawn.max(2) > 50).astype(np.uint8) + (drawn.min(2) > 200)
