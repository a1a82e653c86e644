"""The words for the symbols in the grammar's patterns: what a scene says of itself, and what it says it has not.

A word for an attribute has tags around it, which tell the text encoder in training what it is about.
"""

import random
from collections.abc import Callable

from training import noise, words
from training.world import Scene, default_background

OPEN, CLOSE = "\ue000", "\ue0ff"  # private characters, which no text has
NEGATED = 9
TAGS = {
    "s": 1, "c": 2, "cn": 2, "b": 3, "bn": 3, "l": 3, "z": 4, "p": 5, "s2": 6, "c2": 7, "g": 8, "d": NEGATED,
    "not-c": NEGATED, "no-c": NEGATED, "not-s": NEGATED, "not-w": NEGATED, "number": 10, "q": 5, "u": 5, "v": 11,
    "es": 1, "ec": 2, "eb": 3, "ep": 5, "es2": 6, "ec2": 7,
}  # fmt: skip
USUAL = {"night": ("moon", "moon", "moon", "cat", "tree"), "sea": ("sun", "sun", "moon"), "meadow": ("sun", "flower")}
NUMBERS = ("一", "一", "一", "一", "1", "这", "那", "某", "有一", "单独一", "每")


def tagged(symbol: str, word: str) -> str:
    return chr(ord(OPEN) + TAGS[symbol]) + word + CLOSE if symbol in TAGS and word else word


def _usual(choices: tuple[str, ...], rng: random.Random, usual: float = 0.5) -> str:
    """The everyday word with probability `usual`, else any."""
    return choices[0] if rng.random() < usual else rng.choice(choices)


def _attribute(colour: str | None, rng: random.Random) -> str:
    """红, 红色, 红色的 …: before a noun."""
    if colour is None:
        return ""
    if rng.random() < 0.05:
        return _english("colours", colour, rng) + rng.choice(("", "", " ", "色", "色的", "的", "颜色的"))
    name = _usual(words.COLOURS[colour], rng)
    if rng.random() < 0.03:
        like = rng.choice(("", "像")) + rng.choice(words.LIKE[colour]) + rng.choice(("一样", "般", "一般", "似的"))
        return like + rng.choice(("", "的")) + name + rng.choice(("色", "色的", "的"))
    return name + rng.choice(("", "", "色", "色", "色的", "色的", "色的", "的", "颜色的", "色系的", "色调的"))


def _predicate(colour: str | None, rng: random.Random) -> str:
    """红, 红色, 红的 …: after 是, or as an object of its own."""
    if colour is None:
        return ""
    if rng.random() < 0.05:
        return _english("colours", colour, rng) + rng.choice(("", "", "色", "色的", "的"))
    name = _usual(words.COLOURS[colour], rng)
    return name + rng.choice(("色", "色", "色", "色", "", "", "色的", "的", "颜色", "色调", "色系"))


def _shape(shape: str | None, rng: random.Random) -> str:
    if shape is None:
        return ""
    if shape in words.ENGLISH["shapes"] and rng.random() < 0.03:
        return _english("shapes", shape, rng)
    return _usual(words.SHAPES[shape].words, rng, 0.35)


def _count(scene: Scene, rng: random.Random) -> str:
    """A number and a measure word: 一个, 两颗, 3个."""
    if scene.number is None or scene.shape is None:
        return _measure(scene.shape, rng)
    if scene.number == "two" and rng.random() < 0.06:
        return tagged("number", rng.choice(("一对", "一双")))
    number = tagged("number", rng.choice(words.NUMBERS[scene.number]))
    if rng.random() < 0.05:
        return number
    return number + (rng.choice(words.SHAPES[scene.shape].measures) if rng.random() < 0.7 else "个")


def _measure(shape: str | None, rng: random.Random) -> str:
    if shape is None or rng.random() < 0.25:
        return ""
    measures = words.SHAPES[shape].measures
    if rng.random() < 0.05:
        return rng.choice(NUMBERS)
    return ("" if rng.random() < 0.08 else rng.choice(NUMBERS)) + (rng.choice(measures) if rng.random() < 0.9 else "个")


def _adjective(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.SHAPES[scene.shape].adjectives if rng.random() < 0.6 else words.ADJECTIVES)


def _another(scene: Scene, rng: random.Random) -> str:
    """A colour that the background does not have."""
    behind = scene.background or default_background(scene.colour, scene.second_colour)
    return _usual(words.COLOURS[_other_colour({behind}, rng)], rng) + "色"


def _not_colour(scene: Scene, rng: random.Random) -> str:
    """A colour that the object does not have, nor the background."""
    return _excluded(_other_colour({scene.colour, scene.background}, rng), rng)


def _excluded(colour: str, rng: random.Random) -> str:
    return _usual(words.COLOURS[colour], rng) + rng.choice(("", "色", "色", "色"))


def _other_colour(present: set[str | None], rng: random.Random) -> str:
    return rng.choice([colour for colour in words.COLOURS if colour not in present])


def _not_shape(scene: Scene, rng: random.Random) -> str:
    shapes = [shape for shape in words.SHAPES if shape not in (scene.shape, scene.second_shape)]
    return _usual(words.SHAPES[rng.choice(shapes)].words, rng, 0.5)


def _not_there(scene: Scene, rng: random.Random) -> str:
    """What a landscape might have and has not; not stars, for the sky of a night has some."""
    usual = {
        "night": ("moon", "moon", "moon", "cat", "tree"),
        "sea": ("sun", "sun", "moon"),
        "meadow": ("sun", "flower"),
    }
    every = [*usual.get(str(scene.background), ()), rng.choice(("sun", "moon", "tree", "flower", "house", "cat"))]
    shapes = [shape for shape in every if shape not in (scene.shape, scene.second_shape)]
    if not shapes or rng.random() < 0.1:
        return rng.choice(("人", "云", "云彩", "船", "鸟", "字", "动物"))
    return _usual(words.SHAPES[rng.choice(shapes)].words, rng, 0.6)


def _short(shape: str | None, colour: str | None, shape_tag: str, colour_tag: str, rng: random.Random) -> str:
    """红圆, 红色圆."""
    name = tagged(colour_tag, words.COLOURS[colour][0]) + rng.choice(("", "", "", "色")) if colour else ""
    names = words.SHAPES[str(shape)].words
    return name + tagged(shape_tag, min(names, key=len) if rng.random() < 0.7 else _usual(names, rng))


def _above(place: str | None) -> str:
    return {"top": "上", "bottom": "下"}[str(place)]


def _below(place: str | None) -> str:
    return {"top": "下", "bottom": "上"}[str(place)]


def _english(kind: str, name: str, rng: random.Random) -> str:
    return rng.choice(words.ENGLISH[kind][name])


def _english_shape(shape: str | None, is_many: bool, rng: random.Random) -> str:
    return _english("shapes", str(shape), rng) + ("s" if is_many else "")


def _english_idle(scene: Scene, rng: random.Random) -> str:
    """Words without a meaning here, and some that are none."""
    letters = "abcdefghijklmnopqrstuvwxyz"

    def word() -> str:
        if rng.random() < 0.6:
            return _english("idle", "words", rng)
        return "".join(rng.choice(letters) for _ in range(rng.randint(2, 8)))

    return " ".join(word() for _ in range(rng.choice((1, 1, 2, 2, 3))))


def _english_number(scene: Scene, rng: random.Random) -> str:
    if scene.number is None:
        return "an" if scene.colour == "orange" and rng.random() < 0.7 else rng.choice(("a", "a", "a", "one", "the"))
    return tagged("number", _english("numbers", scene.number, rng))


def _size(scene: Scene, rng: random.Random) -> str:
    return _usual(words.SIZES[scene.size], rng) if scene.size else ""


def _backdrop(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.BACKDROPS)


def _place(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.PLACES[scene.place]) if scene.place else ""


def _bare_place(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.BARE_PLACES[str(scene.place)])


def _landscape(scene: Scene, rng: random.Random) -> str:
    return _usual(words.LANDSCAPES[str(scene.background)], rng, 0.3)


def _anything(scene: Scene, rng: random.Random) -> str:
    return noise.characters(rng.choice((1, 1, 2, 2, 3)), rng)


WORDS: dict[str, Callable[[Scene, random.Random], str]] = {
    "c": lambda scene, rng: _attribute(scene.colour, rng),
    "cn": lambda scene, rng: _predicate(scene.colour, rng),
    "s": lambda scene, rng: _shape(scene.shape, rng),
    "m": _count,
    "a": _adjective,
    "d": _another,
    "not-c": _not_colour,
    "no-c": lambda scene, rng: _excluded(str(scene.colour), rng),
    "not-s": _not_shape,
    "not-w": _not_there,
    "z": _size,
    "b": lambda scene, rng: _attribute(scene.background, rng),
    "bn": lambda scene, rng: _predicate(scene.background, rng),
    "g": _backdrop,
    "l": _landscape,
    "p": _place,
    "q": _bare_place,
    "u": lambda scene, rng: _above(scene.place),
    "v": lambda scene, rng: _below(scene.place),
    "k": lambda scene, rng: _short(scene.shape, scene.colour, "s", "c", rng),
    "k2": lambda scene, rng: _short(scene.second_shape, scene.second_colour, "s2", "c2", rng),
    "ec": lambda scene, rng: _english("colours", str(scene.colour), rng),
    "es": lambda scene, rng: _english_shape(scene.shape, scene.number is not None, rng),
    "eb": lambda scene, rng: _english("colours", str(scene.background), rng),
    "ec2": lambda scene, rng: _english("colours", str(scene.second_colour), rng),
    "es2": lambda scene, rng: _english_shape(scene.second_shape, False, rng),
    "en": _english_number,
    "ex": _english_idle,
    "ep": lambda scene, rng: _english("places", str(scene.place), rng),
    "c2": lambda scene, rng: _attribute(scene.second_colour, rng),
    "s2": lambda scene, rng: _shape(scene.second_shape, rng),
    "m2": lambda scene, rng: _measure(scene.second_shape, rng),
    "x": _anything,
}
