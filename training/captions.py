"""Captions for scenes: the grammar's sentences with words filled in, and some noise.

Noise is characters and phrases that name no colour, shape, place or background, so it never changes the meaning.
"""

import random
import re
from functools import cache

from training import fillings, noise, words
from training.fillings import CLOSE, OPEN, TAGS
from training.grammar import RULES
from training.world import CORNERS, LANDSCAPES, Scene

SYMBOL = re.compile(r"<([^<>]+)>")
JOINED = re.compile(f"([a-z0-9])([{OPEN}-{CLOSE}]+)(?=[a-z0-9])", re.IGNORECASE)
ASIDE = ("left", "right", "top", "bottom", *CORNERS)


def caption(scene: Scene, rng: random.Random) -> str:
    return read_tags(tagged_caption(scene, rng))[0]


def tagged_caption(scene: Scene, rng: random.Random) -> str:
    """A caption with tags around every word for an attribute, for the training of the text encoder."""
    symbol = _pattern(scene, rng)
    text = describe(scene, rng, RULES, symbol)
    if symbol.startswith("english"):
        return text.capitalize() if rng.random() < 0.2 else text
    return around(text, rng)


def around(text: str, rng: random.Random) -> str:
    """The sentence with what people say around it, and with noise."""
    if rng.random() < 0.3:
        text = _noisy(text, rng)
    if rng.random() < 0.12:
        text = rng.choice(RULES["before"]) + text
    if rng.random() < 0.1:
        text += rng.choice(RULES["after"])
    if rng.random() < 0.08:
        text = text.translate(words.TRADITIONAL)
    if rng.random() < 0.12:
        text += rng.choice("。。！.!~？")
    return text


def describe(scene: Scene, rng: random.Random, rules: dict[str, tuple[str, ...]], symbol: str) -> str:
    """A sentence with all attributes of the scene. Some patterns have no place for a size or a number: then another."""
    while True:
        text = expand(symbol, scene, rng, rules)
        if (not scene.size or _has(text, "z")) and (not scene.number or _has(text, "number")):
            return JOINED.sub(r"\1\2 ", re.sub(f"的({CLOSE}?)的", r"的\1", text))


def _has(text: str, tag: str) -> bool:
    return chr(ord(OPEN) + TAGS[tag]) in text


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


def _pattern(scene: Scene, rng: random.Random) -> str:
    if scene.background in LANDSCAPES:
        return _landscape_pattern(scene, rng)
    if scene.shape is None:
        return "empty"
    on = "-on" if scene.background else ""
    if scene.colour and not scene.size and (scene.second_colour or not scene.is_pair) and rng.random() < 0.07:
        return _english_pattern(scene) + on
    if scene.is_pair:
        kind = "stack" if scene.place else "short" if rng.random() < 0.35 else "pair"
    elif scene.colour is None:
        kind = "bare-place" if scene.place in ASIDE else "bare"
    elif scene.place in ASIDE:
        kind = "place"
    elif scene.number:
        kind = "several"
    else:
        kind = "denied" if not scene.size and rng.random() < 0.13 else "single"
    return kind + on


def _english_pattern(scene: Scene) -> str:
    return f"english-{'pair' if scene.is_pair else 'place'}" if scene.is_pair or scene.place in ASIDE else "english"


def _landscape_pattern(scene: Scene, rng: random.Random) -> str:
    if scene.shape is None:
        return "empty-landscape"
    if scene.second_shape:
        return "landscape-pair"
    return "landscape-denied" if rng.random() < 0.2 else "landscape"


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
        word = fillings.WORDS.get(symbol)
        filled[place] = fillings.tagged(symbol, word(scene, rng)) if word else expand(symbol, scene, rng, rules)
    return "".join(filled)


@cache
def _parts(pattern: str) -> tuple[str, ...]:
    """Text, symbol, text, symbol, …, text."""
    return tuple(SYMBOL.split(pattern))


def _noisy(text: str, rng: random.Random) -> str:
    def anything(most: int) -> str:
        return noise.characters(rng.randint(1, most), rng)

    if rng.random() < 0.4:
        phrase = rng.choice(noise.PHRASES)
        text = text + "，" + phrase if rng.random() < 0.25 else phrase + rng.choice(("", "的", "，", "：")) + text
    if rng.random() < 0.5:
        text = anything(5) + rng.choice(("", "", "，", "：", " ")) + text
    if rng.random() < 0.3:
        text += rng.choice(("", "，", "。", " ")) + anything(4)
    if "，" in text and rng.random() < 0.4:
        place = text.index("，") + 1
        text = text[:place] + anything(3) + text[place:]
    if rng.random() < 0.15:  # drop a character
        place = rng.randrange(len(text))
        if text[place] not in noise.MEANINGFUL and "z" < text[place] < OPEN:
            text = text[:place] + text[place + 1 :]
    return text
