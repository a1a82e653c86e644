"""Draws scenes as flat images of 128 × 128 pixels, simple enough for the judge and for a small autoencoder.

The random generator decides what a scene leaves open: a natural colour, and a shift of a few pixels.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from training.world import LANDSCAPES, NATURAL, Scene, default_background

SIDE = 128
FINE = 3  # supersampling, for smooth edges
RGB = {
    "red": (222, 44, 44),
    "orange": (248, 142, 32),
    "yellow": (252, 220, 60),
    "green": (52, 168, 80),
    "blue": (44, 98, 216),
    "purple": (134, 62, 180),
    "pink": (252, 166, 198),
    "brown": (126, 76, 40),
    "black": (26, 26, 30),
    "white": (250, 250, 248),
    "grey": (146, 150, 154),
}
SKY, EVENING, NIGHT, STARS = (150, 208, 246), (250, 206, 150), (24, 28, 78), (255, 250, 200)
GRASS, WATER, TRUNK, DARK_TRUNK, LEAF = (88, 178, 84), (38, 112, 190), (112, 70, 42), (78, 48, 26), (30, 110, 56)
RADIUS = {None: 37, "big": 48, "small": 25}
RADIUS_ASIDE = {None: 26, "big": 30, "small": 21}
CENTRE = {
    "left": (34, 64), "right": (94, 64), "top": (64, 34), "bottom": (64, 94),
    "top-left": (34, 34), "top-right": (94, 34), "bottom-left": (34, 94), "bottom-right": (94, 94),
}  # fmt: skip
RADIUS_OF_SEVERAL = {None: 25, "big": 26, "small": 23}
SEVERAL = {"two": ((34, 64), (94, 64)), "three": ((64, 35), (33, 92), (95, 92))}  # three in a row would be too small

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """The image: uint8, rows × columns × RGB."""
    canvas = _Canvas()
    behind = _background(canvas, scene, rng)
    for shape, colour, (x, y, radius) in _things(scene, rng):
        SHAPE[shape](_Pen(canvas, x, y, radius, _tint(colour, rng), behind))
    return canvas.pixels()


def outline(shape: str, radius: float = 48) -> np.ndarray:
    """The shape alone, white on black, for the judge."""
    canvas = _Canvas()
    white = (255, 255, 255)
    SHAPE[shape](_Pen(canvas, SIDE / 2, SIDE / 2, radius, white, (0, 0, 0)))
    return canvas.pixels()


def _things(scene: Scene, rng: random.Random) -> list[tuple[str, str, tuple[float, float, float]]]:
    def shake(x: float, y: float, radius: float, most: float = 2.5) -> tuple[float, float, float]:
        return x + rng.uniform(-most, most), y + rng.uniform(-most, most), radius * rng.uniform(0.96, 1.04)

    if scene.shape is None:
        return []
    colour = scene.colour or _natural(scene.shape, scene, rng)
    second = scene.second_shape
    if scene.is_pair and second:
        second_colour = scene.second_colour or _natural(second, scene, rng)
        sides = {"top": ("top", "bottom"), "bottom": ("bottom", "top")}.get(str(scene.place), ("left", "right"))
        first, other = (CENTRE[side] for side in sides)
        return [(scene.shape, colour, shake(*first, 26)), (second, second_colour, shake(*other, 26))]
    height = 64 if scene.background not in LANDSCAPES else 50 if scene.shape in ("sun", "moon", "star") else 70
    if scene.number:
        lower = height - 64 if scene.number == "two" else 0
        radius = RADIUS_OF_SEVERAL[scene.size]
        return [(scene.shape, colour, shake(x, y + lower, radius, 1.5)) for x, y in SEVERAL[scene.number]]
    if scene.background in LANDSCAPES:
        things = [(scene.shape, colour, shake(64, height, 34))]
        if second:
            things.append((second, "yellow" if second == "moon" else "orange", shake(108, 20, 15)))
        return things
    if scene.place in CENTRE:
        return [(scene.shape, colour, shake(*CENTRE[scene.place], RADIUS_ASIDE[scene.size]))]
    return [(scene.shape, colour, shake(64, 64, RADIUS[scene.size]))]


def _natural(shape: str, scene: Scene, rng: random.Random) -> str:
    behind = scene.background or default_background(scene.colour, scene.second_colour)
    fitting = [colour for colour in NATURAL[shape] if colour != behind]
    return rng.choice(fitting or ["white" if behind != "white" else "blue"])


def _background(canvas: "_Canvas", scene: Scene, rng: random.Random) -> Colour:
    if scene.background == "meadow":
        return canvas.landscape(SKY, GRASS, 94)
    if scene.background == "sea":
        return canvas.landscape(EVENING, WATER, 88)
    if scene.background == "night":
        behind = canvas.landscape(NIGHT, NIGHT, SIDE)
        for x, y in ((16, 20), (44, 12), (20, 60), (112, 66), (100, 104), (26, 108), (84, 10)):
            canvas.polygon([(x, y - 4), (x + 4, y), (x, y + 4), (x - 4, y)], STARS)
        return behind
    behind = _tint(scene.background or default_background(scene.colour, scene.second_colour), rng)
    return canvas.landscape(behind, behind, SIDE)


def _tint(colour: str, rng: random.Random) -> Colour:
    red, green, blue = (min(255, max(0, round(level + rng.gauss(0, 3)))) for level in RGB[colour])
    return red, green, blue


class _Canvas:
    """A canvas with coordinates in pixels of the image."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (SIDE * FINE, SIDE * FINE))
        self._draw = ImageDraw.Draw(self._image)

    def landscape(self, above: Colour, below: Colour, horizon: int) -> Colour:
        self._draw.rectangle((0, 0, SIDE * FINE, horizon * FINE), above)
        self._draw.rectangle((0, horizon * FINE, SIDE * FINE, SIDE * FINE), below)
        return above

    def polygon(self, points: Points, colour: Colour) -> None:
        self._draw.polygon([(x * FINE, y * FINE) for x, y in points], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self._draw.ellipse([(x - radius) * FINE, (y - radius) * FINE, (x + radius) * FINE, (y + radius) * FINE], colour)

    def pixels(self) -> np.ndarray:
        return np.asarray(self._image.resize((SIDE, SIDE), Image.Resampling.BOX))


class _Pen:
    """The colour, place and size of one shape. Points are relative to its centre, in units of its radius."""

    def __init__(self, canvas: _Canvas, x: float, y: float, radius: float, colour: Colour, behind: Colour) -> None:
        self._canvas, self._x, self._y, self._radius = canvas, x, y, radius
        self.colour, self.behind = colour, behind
        red, green, blue = colour
        dark = sum(colour) < 240
        self.contrast: Colour = (
            (red + 80, green + 80, blue + 80) if dark else (red * 5 // 9, green * 5 // 9, blue * 5 // 9)
        )

    def polygon(self, *points: tuple[float, float], colour: Colour | None = None) -> None:
        r = self._radius
        self._canvas.polygon([(self._x + x * r, self._y + y * r) for x, y in points], colour or self.colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour | None = None) -> None:
        r = self._radius
        self._canvas.disc(self._x + x * r, self._y + y * r, radius * r, colour or self.colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour | None = None) -> None:
        self.polygon((left, top), (right, top), (right, bottom), (left, bottom), colour=colour)


def _on_circle(turns: float, radius: float) -> tuple[float, float]:
    return radius * math.sin(turns * 2 * math.pi), -radius * math.cos(turns * 2 * math.pi)


def _circle(pen: _Pen) -> None:
    pen.disc(0, 0, 0.98)


def _square(pen: _Pen) -> None:
    pen.box(-0.86, -0.86, 0.86, 0.86)


def _triangle(pen: _Pen) -> None:
    pen.polygon((0, -0.98), (1.06, 0.82), (-1.06, 0.82))


def _star(pen: _Pen) -> None:
    points = [_on_circle(corner / 10, 0.47 if corner % 2 else 1.14) for corner in range(10)]
    pen.polygon(*((x, y + 0.08) for x, y in points))


def _heart(pen: _Pen) -> None:
    points = []
    for step in range(60):
        t = step * math.pi / 30
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((1.02 * math.sin(t) ** 3, -0.06 - 0.066 * y))
    pen.polygon(*points)


def _diamond(pen: _Pen) -> None:
    pen.polygon((0, -1.1), (0.76, 0), (0, 1.1), (-0.76, 0))


def _moon(pen: _Pen) -> None:
    inner = [(x * 0.80 + 0.42, y * 0.80 - 0.16) for x, y in (_on_circle(step / 60, 1) for step in range(60))]
    pen.disc(-0.08, 0, 0.98)
    pen.polygon(*inner, colour=pen.behind)


def _sun(pen: _Pen) -> None:
    for ray in range(8):
        left, tip, right = _on_circle(ray / 8 - 0.06, 0.55), _on_circle(ray / 8, 1.2), _on_circle(ray / 8 + 0.06, 0.55)
        pen.polygon(left, tip, right)
    pen.disc(0, 0, 0.66)


def _house(pen: _Pen) -> None:
    pen.box(-0.72, -0.2, 0.72, 0.92)
    pen.polygon((0, -1.06), (1.08, -0.14), (-1.08, -0.14), colour=pen.contrast)
    pen.box(-0.2, 0.36, 0.2, 0.92, colour=pen.contrast)


def _is_bright(colour: Colour) -> bool:
    red, green, blue = colour
    return red > 140 or green > 100 or blue > 100


def _tree(pen: _Pen) -> None:
    pen.box(-0.17, 0.2, 0.17, 1.08, colour=TRUNK if _is_bright(pen.colour) else DARK_TRUNK)
    pen.disc(-0.46, 0.02, 0.46)
    pen.disc(0.46, 0.02, 0.46)
    pen.disc(0, -0.46, 0.56)


def _flower(pen: _Pen) -> None:
    pen.box(-0.09, 0.2, 0.09, 1.15, colour=LEAF)
    pen.polygon((0, 1.1), (0.62, 0.72), (0.5, 0.95), colour=LEAF)
    pen.polygon((0, 1.1), (-0.62, 0.72), (-0.5, 0.95), colour=LEAF)
    for petal in range(5):
        x, y = _on_circle(petal / 5, 0.48)
        pen.disc(x, y - 0.32, 0.37)
    yellowish = pen.colour[0] > 235 and pen.colour[1] > 190 and pen.colour[2] < 120
    pen.disc(0, -0.32, 0.27, colour=RGB["brown"] if yellowish else RGB["yellow"])


def _cat(pen: _Pen) -> None:
    pen.polygon((-0.92, -1.06), (-0.12, -0.62), (-0.88, 0.1))
    pen.polygon((0.92, -1.06), (0.12, -0.62), (0.88, 0.1))
    pen.disc(0, 0.12, 0.88)
    for eye in (-0.36, 0.36):
        pen.disc(eye, 0.0, 0.15, colour=pen.contrast)
    pen.polygon((-0.16, 0.36), (0.16, 0.36), (0, 0.54), colour=pen.contrast)


def _no_entry(pen: _Pen) -> None:
    pen.disc(0, 0, 1.0)
    pen.disc(0, 0, 0.7, colour=pen.behind)
    k = 0.13
    pen.polygon((-0.62 - k, -0.62 + k), (-0.62 + k, -0.62 - k), (0.62 + k, 0.62 - k), (0.62 - k, 0.62 + k))


SHAPE: dict[str, Callable[[_Pen], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart, "diamond": _diamond,
    "moon": _moon, "sun": _sun, "house": _house, "tree": _tree, "flower": _flower, "cat": _cat, "no-entry": _no_entry,
}  # fmt: skip
