"""Whether a picture shows a scene: how many objects, which, where, and what behind them.

The prompts come from `heldout.KINDS`, or from `wordings.jsonl`: one JSON object a line, with `kind`, `prompt`, and what
the scene says; `not_colour` and `not_background` are what the prompt excludes, the place `corner` is any of the four.
"""

import json
import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from training import heldout
from training.captions import describe, read_tags
from training.drawing import SIDE, draw
from training.judge import Thing, View, look
from training.world import COLOURS, CORNERS, NUMBERS, SHAPES, Scene, default_background

WORDINGS = Path(__file__).with_name("wordings.jsonl")
HOW_MANY = {"two": 2, "three": 3}
CORNER = "corner"
OFF_CENTRE, APART = 12, 25  # pixels


@dataclass(frozen=True)
class Case:
    kind: str
    prompt: str
    scene: Scene
    not_colour: str | None = None
    not_background: str | None = None

    def is_shown(self, view: View) -> bool:
        return self._has_objects(view) and self._has_places(view) and self._has_background(view)

    def _has_objects(self, view: View) -> bool:
        scene, things = self.scene, view.things
        if scene.shape is None:
            return not things
        if scene.second_shape:
            if len(things) != 2:
                return False
            first, second = self._in_order(things)
            apart = second.y - first.y if scene.place else second.x - first.x
            if abs(apart) < APART:
                return False
            return _is(first, scene.shape, scene.colour) and _is(second, scene.second_shape, scene.second_colour)
        right = [_is(thing, scene.shape, scene.colour) and thing.colour != self.not_colour for thing in things]
        return all(right) and len(right) == HOW_MANY.get(str(scene.number), 1)

    def _in_order(self, things: tuple[Thing, ...]) -> list[Thing]:
        """First the one that is named first: on the left, at the top, or at the bottom."""
        upwards = {"top": 1, "bottom": -1}.get(str(self.scene.place))
        return sorted(things, key=lambda thing: thing.y * upwards if upwards else thing.x)

    def _has_places(self, view: View) -> bool:
        if self.scene.place is None or self.scene.second_shape:
            return True
        (thing,) = view.things
        across = _side(thing.x, "left", "right")
        down = _side(thing.y, "top", "bottom")
        found = f"{down}-{across}" if across and down else across or down
        return found == self.scene.place or (self.scene.place == CORNER and found in CORNERS)

    def _has_background(self, view: View) -> bool:
        if self.not_background:
            return view.background != self.not_background
        scene = self.scene
        if scene.background is None and self.not_colour:
            return view.background in ("white", "blue")
        return view.background == (scene.background or default_background(scene.colour, scene.second_colour))


def _is(thing: Thing, shape: str, colour: str | None) -> bool:
    return thing.shape == shape and colour in (None, thing.colour)


def _side(position: float, low: str, high: str) -> str | None:
    if abs(position - SIDE / 2) < OFF_CENTRE:
        return None
    return low if position < SIDE / 2 else high


def freely_worded(file: Path = WORDINGS) -> list[Case]:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    names = {field.name for field in fields(Scene)}
    return [
        Case(
            row["kind"],
            row["prompt"],
            Scene(**{"shape": None, **{name: value for name, value in row.items() if name in names}}),
            row.get("not_colour"),
            row.get("not_background"),
        )
        for row in rows
    ]


def held_out(count: int, seed: int = 2026) -> list[Case]:
    """So many prompts of each kind, in patterns that are none of training."""
    rng = random.Random(seed)
    cases = []
    for kind in heldout.KINDS:
        for number in range(count):
            scene = _scene(kind, SHAPES[number % (len(SHAPES) - 1)], rng)
            symbol = f"{kind}-on" if scene.background else kind
            cases.append(Case(kind, read_tags(describe(scene, rng, heldout.RULES, symbol))[0], scene))
    return cases


def _scene(kind: str, shape: str, rng: random.Random) -> Scene:
    while True:
        background = rng.choice(COLOURS) if rng.random() < 0.5 else None
        scene = Scene(shape, rng.choice(COLOURS), background)
        if kind == "number":
            scene = Scene(shape, scene.colour, background, number=rng.choice(NUMBERS))
        elif kind == "place":
            scene = Scene(shape, scene.colour, background, place=rng.choice(("top", "bottom", *CORNERS)))
        elif kind == "pair":
            second = rng.choice([other for other in SHAPES[:-1] if other != shape])
            scene = Scene(shape, scene.colour, None, None, None, second, rng.choice(COLOURS))
        behind = scene.background or default_background(scene.colour, scene.second_colour)
        if behind not in (scene.colour, scene.second_colour):
            return scene


def ground_truth(cases: list[Case]) -> list[np.ndarray]:
    """The scenes drawn by `training.drawing`, to measure the judge itself."""
    rng = random.Random(7)
    return [draw(case.scene, rng) for case in cases]


def rates(cases: list[Case], images: list[np.ndarray]) -> dict[str, float]:
    """By kind, how many of the pictures show their scene."""
    shown: dict[str, list[bool]] = {}
    for case, image in zip(cases, images, strict=True):
        shown.setdefault(case.kind, []).append(case.is_shown(look(image)))
    return {kind: sum(right) / len(right) for kind, right in shown.items()}
