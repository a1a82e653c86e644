"""The scenes that mini-zh can draw, and how often each appears in training. Knows no pixels and no Chinese.

A `Scene` describes an image completely. Attributes that are None are left open: the drawing then uses a natural value
(a yellow moon, a white background).
"""

import random
from dataclasses import dataclass, fields
from typing import Any

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "moon",
    "sun",
    "house",
    "tree",
    "flower",
    "cat",
    "no-entry",
)
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
PLACES = ("left", "right", "top", "bottom", "centre", *CORNERS)
NUMBERS = ("two", "three")
SIZES = ("big", "small")
LANDSCAPES = ("meadow", "night", "sea")
BACKGROUNDS = (*COLOURS, *LANDSCAPES)

NATURAL = {
    "circle": ("red", "blue", "green", "yellow"),
    "square": ("blue", "red", "green"),
    "triangle": ("green", "blue", "red"),
    "star": ("yellow",),
    "heart": ("red", "pink"),
    "diamond": ("blue", "purple"),
    "moon": ("yellow",),
    "sun": ("red", "orange"),
    "house": ("red", "brown", "orange"),
    "tree": ("green",),
    "flower": ("red", "pink", "purple"),
    "cat": ("orange", "grey", "black"),
    "no-entry": ("red",),
}
HARD = ("star", "sun", "house", "flower", "tree", "moon", "cat")  # more frequent, for they take longer to learn


@dataclass(frozen=True)
class Scene:
    shape: str | None  # None: the background alone
    colour: str | None = None
    background: str | None = None
    size: str | None = None
    place: str | None = None
    second_shape: str | None = None
    second_colour: str | None = None
    number: str | None = None

    @property
    def is_pair(self) -> bool:
        """Two objects, side by side, or one above the other where the place is top or bottom: that of the first.

        In a landscape the second object is the sun or the moon.
        """
        return self.second_shape is not None and self.background not in LANDSCAPES


ATTRIBUTES = tuple(field.name for field in fields(Scene))
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "size": SIZES, "place": PLACES,
    "second_shape": SHAPES, "second_colour": COLOURS, "number": NUMBERS,
}  # fmt: skip


def default_background(*colours: str | None) -> str:
    """The background behind objects of these colours if none is named."""
    return next(colour for colour in ("white", "blue", "grey") if colour == "grey" or colour not in colours)


def draw_scene(rng: random.Random) -> Scene:
    """A random scene of the training distribution."""
    kinds = (_single, _several, _pair, _landscape, _empty, _sign)
    while True:
        scene = rng.choices(kinds, (61, 13, 10, 11, 3, 2))[0](rng)
        if _can_be_seen(scene):
            return scene


def _single(rng: random.Random) -> Scene:
    shape = _shape(rng)
    place = rng.choice(PLACES) if rng.random() < 0.32 else None
    size = rng.choice(SIZES) if rng.random() < 0.3 else None
    return Scene(shape, _colour(rng, shape), _background(rng), size, place)


def _several(rng: random.Random) -> Scene:
    shape = _shape(rng)
    size = rng.choice(SIZES) if rng.random() < 0.2 else None
    return Scene(shape, _colour(rng, shape), _background(rng), size, number=rng.choice(NUMBERS))


def _pair(rng: random.Random) -> Scene:
    shape, second = _shape(rng), _shape(rng)
    background = _background(rng) if rng.random() < 0.5 else None
    place = rng.choice(("top", "bottom")) if rng.random() < 0.25 else None
    return Scene(shape, _colour(rng, shape), background, None, place, second, _colour(rng, second))


def _landscape(rng: random.Random) -> Scene:
    background = rng.choice(LANDSCAPES)
    shapes = {
        "meadow": ("house", "tree", "flower", "cat", "house", "tree"),
        "night": ("moon", "moon", "star", "tree", "house"),
        "sea": ("sun", "sun", "moon"),
    }
    shape = rng.choice(shapes[background])
    colour = rng.choice(COLOURS) if rng.random() < 0.35 else None
    companion = {"meadow": "sun", "night": "moon"}.get(background)
    if companion and companion != shape and rng.random() < 0.45:
        return Scene(shape, colour, background, second_shape=companion)
    number = rng.choice(NUMBERS) if shape not in ("sun", "moon") and rng.random() < 0.35 else None
    return Scene(shape, colour, background, number=number)


def _empty(rng: random.Random) -> Scene:
    return Scene(None, None, rng.choice(LANDSCAPES if rng.random() < 0.5 else COLOURS))


def _sign(rng: random.Random) -> Scene:
    return Scene("no-entry", None, _background(rng) if rng.random() < 0.3 else None)


def _shape(rng: random.Random) -> str:
    return rng.choice(HARD if rng.random() < 0.35 else SHAPES[:-1])


def _colour(rng: random.Random, shape: str) -> str | None:
    return rng.choice(COLOURS) if rng.random() < 0.93 else None


def _background(rng: random.Random) -> str | None:
    return rng.choice(COLOURS) if rng.random() < 0.62 else None


def _can_be_seen(scene: Scene) -> bool:
    behind = scene.background or default_background(scene.colour, scene.second_colour)
    colours: set[Any] = {scene.colour, scene.second_colour} - {None}
    return behind not in colours
