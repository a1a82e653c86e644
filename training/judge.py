"""Tells from the pixels alone what a picture shows: the colour of its thing, of its background, and the shape.

Knows the palette and the outlines of the drawings, and nothing of any model. What stands out from the border's colour
is the thing; it is held against the outline of every shape, brought to one size.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from training.drawing import RGB, outline
from training.world import SHAPES

BORDER = 4
FIT = 48
PART_COUNTS = 0.93  # a shape without some part of it is likelier to be another shape
NAMES = tuple(RGB)
PALETTE = np.array([RGB[name] for name in NAMES], float)


@dataclass(frozen=True)
class Verdict:
    colour: str | None
    background: str
    shape: str | None  # None: nothing stands out
    likeness: float = 0.0


def judge(pixels: np.ndarray) -> Verdict:
    """Of a picture of one thing (rows × columns × RGB, 0 to 255)."""
    image = pixels.astype(float)
    behind = _border_colour(image)
    background = NAMES[int(_nearest(behind))]
    mask = _standing_out(image, behind)
    if mask.sum() < 60:
        return Verdict(None, background, None)
    likeness = {shape: _likeness(_fitted(mask), shape) for shape in SHAPES}
    shape = max(likeness, key=lambda name: likeness[name])
    return Verdict(_colour(image, mask), background, shape, likeness[shape])


def _border_colour(image: np.ndarray) -> np.ndarray:
    inside = np.zeros(image.shape[:2], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.asarray(np.median(image[~inside], 0))


def _standing_out(image: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Without specks, and with what it encloses: eyes may have the background's colour."""
    distance = np.linalg.norm(image - behind, axis=2)
    mask = distance > max(26.0, 0.3 * float(np.percentile(distance, 98)))
    pieces, count = ndimage.label(mask)
    sizes = ndimage.sum(mask, pieces, range(1, count + 1))
    large = [place + 1 for place, size in enumerate(sizes) if size > max(12, 0.06 * sizes.max())]
    return np.asarray(np.isin(pieces, large))


def _colour(image: np.ndarray, mask: np.ndarray) -> str:
    """The one that most of it has, its edge left out."""
    core = ndimage.binary_erosion(mask, iterations=2 if mask.sum() > 1500 else 1)
    nearest = _nearest(image[core if core.sum() > 40 else mask])
    return NAMES[int(np.bincount(nearest, minlength=len(NAMES)).argmax())]


def _nearest(colours: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(colours[..., None, :] - PALETTE, axis=-1).argmin(-1))


def _fitted(mask: np.ndarray) -> np.ndarray:
    """Its bounding box in a square, at one size."""
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
    """Its outline without what may have the colour of the background: trunk, stem, eyes."""
    if shape not in ("tree", "flower", "cat"):
        return ()
    white = _white(shape) == 2
    return _fitted(white), _fitted(ndimage.binary_fill_holes(white))


def _white(shape: str) -> np.ndarray:
    """Of the shape drawn in white on black: 2 where it is white, 1 where it has some other colour."""
    drawn = outline(shape)
    return (drawn.max(2) > 50).astype(np.uint8) + (drawn.min(2) > 200)
