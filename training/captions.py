"""Captions for scenes: the grammar's sentences with words filled in, and some noise.

Noise is characters and phrases that name no colour, shape, place or background, so it never changes the meaning.
"""

import random
import re
from functools import cache

from training import words
from training.grammar import RULES
from training.world import Scene

SYMBOL = re.compile(r"<([^<>]+)>")
OPEN, CLOSE = "\ue000", "\ue0ff"  # private characters, which no text has
TAGS = {"s": 1, "c": 2, "cn": 2, "b": 3, "bn": 3, "l": 3, "z": 4, "p": 5, "s2": 6, "c2": 7, "g": 8, "d": 9}
NUMBERS = ("一", "一", "一", "一", "1", "这", "那", "某", "有一", "单独一", "每")


def _level_1() -> list[str]:
    """The 3,755 commonest hanzi, in the order of GB 2312."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [hanzi for code in codes if (hanzi := code.decode("gb2312", "ignore"))]


HANZI = _level_1()
MEANINGFUL = set(
    "".join(word for names in words.COLOURS.values() for word in names)
    + "".join(word for noun in words.SHAPES.values() for word in noun.words)
    + "".join(
        word for group in (words.SIZES, words.PLACES, words.LANDSCAPES) for names in group.values() for word in names
    )
    + "".join(words.BACKDROPS)
    + "色底衬后前铺青彩"
)
COMMON = [hanzi for hanzi in words.IDLE if hanzi not in MEANINGFUL]
OTHERS = [hanzi for hanzi in HANZI if hanzi not in MEANINGFUL]


def caption(scene: Scene, rng: random.Random) -> str:
    return read_tags(tagged_caption(scene, rng))[0]


def tagged_caption(scene: Scene, rng: random.Random) -> str:
    """A caption with tags around every word for an attribute, for the training of the text encoder."""
    text = describe(scene, rng, RULES, _pattern(scene))
    if rng.random() < 0.3:
        text = _noisy(text, rng)
    if rng.random() < 0.12:
        text = rng.choice(RULES["before"]) + text
    if rng.random() < 0.1:
        text += rng.choice(RULES["after"])
    if rng.random() < 0.06:
        text = text.translate(words.TRADITIONAL)
    if rng.random() < 0.12:
        text += rng.choice("。。！.!~？")
    return text


def describe(scene: Scene, rng: random.Random, rules: dict[str, tuple[str, ...]], symbol: str) -> str:
    """A sentence with all attributes of the scene. Some patterns have no place for a size; others are tried."""
    while True:
        text = expand(symbol, scene, rng, rules)
        if not scene.size or chr(ord(OPEN) + TAGS["z"]) in text:
            return re.sub(f"的({CLOSE}?)的", r"的\1", text)


def read_tags(text: str) -> tuple[str, list[int]]:
    """The text without its tags, and for each character the number of its tag, or 0."""
    plain, tags, tag = [], [], 0
    for character in text:
        if character == CLOSE:
            tag = 0
        elif OPEN <= character < CLOSE:
            tag = ord(character) - ord(OPEN)
        else:
            plain.append(character)
            tags.append(tag)
    return "".join(plain), tags


def _pattern(scene: Scene) -> str:
    if scene.background in words.LANDSCAPES:
        return "landscape-pair" if scene.second_shape else "landscape"
    if scene.colour is None and not scene.is_pair:
        return "bare-on" if scene.background else "bare"
    kind = "pair" if scene.is_pair else "place" if scene.place in ("left", "right", "top", "bottom") else "single"
    return f"{kind}-on" if scene.background else kind


def expand(symbol: str, scene: Scene, rng: random.Random, rules: dict[str, tuple[str, ...]] = RULES) -> str:
    """A random sentence for the symbol, with all symbols in it expanded."""
    return _filled(rng.choice(rules[symbol]), scene, rng, rules)


def _filled(pattern: str, scene: Scene, rng: random.Random, rules: dict[str, tuple[str, ...]]) -> str:
    parts = _parts(pattern)
    if len(parts) == 1:
        return parts[0]
    filled = list(parts)
    for place in range(1, len(parts), 2):
        symbol = parts[place]
        word = WORDS.get(symbol)
        filled[place] = _tagged(symbol, word(scene, rng)) if word else expand(symbol, scene, rng, rules)
    return "".join(filled)


def _tagged(symbol: str, word: str) -> str:
    return chr(ord(OPEN) + TAGS[symbol]) + word + CLOSE if symbol in TAGS and word else word


@cache
def _parts(pattern: str) -> tuple[str, ...]:
    """Text, symbol, text, symbol, …, text."""
    return tuple(SYMBOL.split(pattern))


def _usual(choices: tuple[str, ...], rng: random.Random, usual: float = 0.5) -> str:
    """The everyday word with probability `usual`, else any."""
    return choices[0] if rng.random() < usual else rng.choice(choices)


def _attribute(colour: str | None, rng: random.Random) -> str:
    """红, 红色, 红色的 …: before a noun."""
    if colour is None:
        return ""
    name = _usual(words.COLOURS[colour], rng)
    if rng.random() < 0.03:
        like = rng.choice(("", "像")) + rng.choice(words.LIKE[colour]) + rng.choice(("一样", "般", "一般", "似的"))
        return like + rng.choice(("", "的")) + name + rng.choice(("色", "色的", "的"))
    return name + rng.choice(("", "", "色", "色", "色的", "色的", "色的", "的", "颜色的", "色系的", "色调的"))


def _predicate(colour: str | None, rng: random.Random) -> str:
    """红, 红色, 红的 …: after 是, or as an object of its own."""
    if colour is None:
        return ""
    name = _usual(words.COLOURS[colour], rng)
    return name + rng.choice(("色", "色", "色", "色", "", "", "色的", "的", "颜色", "色调", "色系"))


def _shape(shape: str | None, rng: random.Random) -> str:
    if shape is None:
        return ""
    return _usual(words.SHAPES[shape].words, rng, 0.35)


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
    """A colour that the sentence names but excludes."""
    others = [colour for colour in words.COLOURS if colour != scene.background]
    return words.COLOURS[rng.choice(others)][0] + "色"


def _size(scene: Scene, rng: random.Random) -> str:
    return _usual(words.SIZES[scene.size], rng) if scene.size else ""


def _backdrop(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.BACKDROPS)


def _place(scene: Scene, rng: random.Random) -> str:
    return rng.choice(words.PLACES[scene.place]) if scene.place else ""


def _landscape(scene: Scene, rng: random.Random) -> str:
    return _usual(words.LANDSCAPES[str(scene.background)], rng, 0.3)


def _anything(scene: Scene, rng: random.Random) -> str:
    return "".join(rng.choice(COMMON if rng.random() < 0.6 else OTHERS) for _ in range(rng.choice((1, 1, 2, 2, 3))))


WORDS = {
    "c": lambda scene, rng: _attribute(scene.colour, rng),
    "cn": lambda scene, rng: _predicate(scene.colour, rng),
    "s": lambda scene, rng: _shape(scene.shape, rng),
    "m": lambda scene, rng: _measure(scene.shape, rng),
    "a": _adjective,
    "d": _another,
    "z": _size,
    "b": lambda scene, rng: _attribute(scene.background, rng),
    "bn": lambda scene, rng: _predicate(scene.background, rng),
    "g": _backdrop,
    "l": _landscape,
    "p": _place,
    "c2": lambda scene, rng: _attribute(scene.second_colour, rng),
    "s2": lambda scene, rng: _shape(scene.second_shape, rng),
    "m2": lambda scene, rng: _measure(scene.second_shape, rng),
    "x": _anything,
}


def _noisy(text: str, rng: random.Random) -> str:
    def noise(most: int) -> str:
        return "".join(rng.choice(COMMON if rng.random() < 0.6 else OTHERS) for _ in range(rng.randint(1, most)))

    if rng.random() < 0.5:
        text = noise(5) + rng.choice(("", "", "，", "：", " ")) + text
    if rng.random() < 0.3:
        text += rng.choice(("", "，", "。", " ")) + noise(4)
    if "，" in text and rng.random() < 0.4:
        place = text.index("，") + 1
        text = text[:place] + noise(3) + text[place:]
    if rng.random() < 0.15:  # drop a character
        place = rng.randrange(len(text))
        if text[place] not in MEANINGFUL and text[place] < OPEN:
            text = text[:place] + text[place + 1 :]
    return text
