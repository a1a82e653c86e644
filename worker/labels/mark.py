"""The visible label: AI生成 in the lower right corner of a picture, 6 % of its shorter side high.

The glyphs are strokes of our own, so no font is needed. Equal pictures stay equal. Knows no file and no metadata.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[int, int]

HEIGHT = 0.06  # of the shorter side; GB 45438-2025 wants at least 0.05
LEAST_PIXELS, MOST_OF_SIDE = 14, 0.25  # of a height on small pictures: hanzi of fewer pixels cannot be read
SCALE = 4  # each pixel is drawn as so many squared
SQUARE, STROKE, HALO = 100, 9, 22  # units of a hanzi's side, and widths of its strokes and of the dark halo around them
GAP, MARGIN = 12, 40
DARKNESS = 150  # of the halo, of 255

# Each glyph: its width in units, and its strokes, from (0, 0) at the upper left to 100 below.
GLYPHS: tuple[tuple[int, tuple[tuple[Point, ...], ...]], ...] = (
    (62, (((4, 93), (31, 9)), ((31, 9), (58, 93)), ((15, 64), (47, 64)))),  # A
    (24, (((12, 9), (12, 93)),)),  # I
    (
        SQUARE,
        (((31, 8), (14, 42)), ((25, 30), (86, 30)), ((24, 60), (80, 60)), ((52, 6), (52, 92)), ((8, 92), (93, 92))),
    ),  # 生
    (
        SQUARE,  # 成
        (
            ((16, 27), (92, 27)),
            ((16, 27), (16, 55), (6, 94)),
            ((16, 50), (46, 50), (43, 80), (32, 76)),
            ((57, 6), (60, 45), (76, 84), (91, 92), (94, 74)),
            ((85, 44), (70, 68), (46, 92)),
            ((70, 8), (83, 18)),
        ),
    ),
)


def draw_mark(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of a height × width × RGB picture with the label in it."""
    side = min(pixels.shape[:2])
    height = max(1, round(max(HEIGHT * side, min(LEAST_PIXELS, MOST_OF_SIDE * side))))
    marked = pixels.copy()
    halo, strokes = _masks(height)
    bottom, right = (length - round(MARGIN * height / SQUARE) for length in pixels.shape[:2])
    top, left = max(0, bottom - halo.shape[0]), max(0, right - halo.shape[1])
    corner = marked[top:bottom, left:right]
    cut = slice(corner.shape[0]), slice(corner.shape[1])
    corner[:] = _blend(_blend(corner, 0, halo[cut]), 255, strokes[cut])
    return marked


def _blend(pixels: NDArray[np.uint8], level: int, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    part = mask[..., None].astype(np.uint32)
    return ((pixels * (255 - part) + level * part + 127) // 255).astype(np.uint8)


@lru_cache(16)
def _masks(height: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The halo and the strokes, height × width, 0 where nothing is drawn."""
    halo = _drawn(height, HALO)
    return (halo.astype(np.uint32) * DARKNESS // 255).astype(np.uint8), _drawn(height, STROKE)


def _drawn(height: int, stroke: int) -> NDArray[np.uint8]:
    unit = SCALE * height / SQUARE
    width = sum(width for width, _ in GLYPHS) + GAP * (len(GLYPHS) - 1)
    image = Image.new("L", (SCALE * round(width * height / SQUARE), SCALE * height))
    canvas, left = ImageDraw.Draw(image), 0
    thickness = max(1, round(stroke * unit))
    for glyph_width, strokes in GLYPHS:
        for points in strokes:
            line = [((left + x) * unit, y * unit) for x, y in points]
            canvas.line(line, fill=255, width=thickness, joint="curve")
            for x, y in line:  # round ends
                radius = thickness / 2
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        left += glyph_width + GAP
    return np.asarray(image.reduce(SCALE))
