"""Recognises from the pixels what an image shows: the colour and the shape of its object, and the background.

Knows the palette and the outlines of the drawings, and no model. The object is what differs from the border's colour;
it is compared with the outline of every shape at one size.
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
PART_COUNTS = 0.93  # a match without some part counts less
NAMES = tuple(RGB)
PALETTE = np.array([RGB[name] for name in NAMES], float)


@dataclass(frozen=True)
class Verdict:
    colour: str | None
    background: str
    shape: str | None  # None: no object
    likeness: float = 0.0


def judge(pixels: np.ndarray) -> Verdict:
    """Judge an image of one object (rows × columns × RGB, 0 to 255)."""
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
