"""The sentences that mini-zh learns from say what their images show, and evaluation's patterns are none of theirs."""

import random
import re

import pytest

from training import codes, grammar, heldout, words
from training.captions import caption, describe, read_tags, tagged_caption
from training.fillings import CLOSE, NEGATED, OPEN, TAGS
from training.noise import MEANINGFUL
from training.text import _unnamed_colour
from training.world import ATTRIBUTES, COLOURS, CORNERS, SHAPES, Scene, draw_scene

SPOKEN = {
    "shape": (1,), "colour": (2,), "background": (3,), "size": (4,), "place": (5,), "second_shape": (6,),
    "second_colour": (7,), "number": (10,),
}  # fmt: skip


def scenes(count: int) -> list[Scene]:
    rng = random.Random(11)
    return [draw_scene(rng) for _ in range(count)]


def spoken(text: str, attribute: str) -> str:
    """The characters of a sentence that speak of an attribute."""
    plain, tags = read_tags(text)
    return "".join(character for character, tag in zip(plain, tags, strict=True) if tag in SPOKEN[attribute])


def names(scene: Scene, attribute: str) -> set[str]:
    value = getattr(scene, attribute)
    if attribute in ("shape", "second_shape"):
        known = (*words.SHAPES[value].words, *words.ENGLISH["shapes"].get(value, ()))
    elif attribute == "size":
        known = words.SIZES[value]
    elif attribute == "number":
        known = (*words.NUMBERS[value], *words.ENGLISH["numbers"][value], *(("一对", "一双") if value == "two" else ()))
    elif attribute == "place":
        known = (*words.PLACES[value], *words.BARE_PLACES[value], *words.ENGLISH["places"].get(value, ()))
    else:
        known = (*words.ENGLISH["colours"].get(value, ()), *(words.COLOURS.get(value) or words.LANDSCAPES[value]))
    return {*known, *(word.translate(words.TRADITIONAL) for word in known)}


@pytest.mark.parametrize("attribute", SPOKEN)
def test_a_caption_says_each_attribute_that_its_picture_has(attribute: str) -> None:
    rng = random.Random(12)
    for scene in scenes(1500):
        text = spoken(tagged_caption(scene, rng), attribute).lower()
        if getattr(scene, attribute) is None:
            assert text == ""
        elif not (attribute == "second_colour" or scene.is_pair or scene.place == "centre"):
            assert any(word in text for word in names(scene, attribute)), (text, scene)


def test_noise_says_nothing() -> None:
    """Between the words that are meant there is none that could be meant."""
    colours = {word for known in words.COLOURS.values() for word in known}
    rng = random.Random(13)
    for scene in scenes(500):
        plain, tags = read_tags(tagged_caption(scene, rng))
        rest = "".join(character if tag == 0 else "|" for character, tag in zip(plain, tags, strict=True))
        assert not [colour for colour in colours if f"{colour}色" in rest], plain


@pytest.mark.parametrize(
    ("symbol", "background"), [("denied-o", None), ("denied-o", "blue"), ("landscape-denied", "night")]
)
def test_what_is_excluded_is_not_what_is_drawn(symbol: str, background: str | None) -> None:
    rng = random.Random(15)
    own = {*words.COLOURS["red"], *words.SHAPES["circle"].words, *words.COLOURS.get(str(background), ())}
    found = [excluded(Scene("circle", "red", background), symbol, rng) for _ in range(300)]
    assert not {word.removesuffix("色") for words_ in found for word in words_} & own
    assert sum(bool(words_) for words_ in found) > 150


def test_where_only_a_colour_is_excluded_the_picture_has_another() -> None:
    """不是红色的圆: the colour that is named is the one that the label is not."""
    rng = random.Random(16)
    for colour in COLOURS:
        for _ in range(20):
            (word,) = excluded(Scene("circle", colour), "unnamed", rng)
            assert word.removesuffix("色") in words.COLOURS[colour]
    for _ in range(200):
        text, labels = _unnamed_colour(rng)
        plain, tags = read_tags(text)
        named = "".join(character for character, tag in zip(plain, tags, strict=True) if tag == NEGATED)
        drawn = codes.OPTIONS["colour"][labels[ATTRIBUTES.index("colour")]]
        simplified = named.translate({traditional: plain for plain, traditional in words.TRADITIONAL.items()})
        assert simplified.removesuffix("色") not in words.COLOURS[drawn], plain


def excluded(scene: Scene, symbol: str, rng: random.Random) -> list[str]:
    """What a sentence says to be absent."""
    text = describe(scene, rng, grammar.RULES, symbol)
    return re.findall(f"{chr(ord(OPEN) + NEGATED)}([^{CLOSE}]*){CLOSE}", text)


def test_a_corner_is_said_in_each_sentence() -> None:
    rng = random.Random(17)
    for corner in CORNERS:
        for colour, background in (("red", "blue"), ("red", None), (None, "blue"), (None, None)):
            text = tagged_caption(Scene("star", colour, background, None, corner), rng)
            assert spoken(text, "place"), read_tags(text)[0]


def test_the_same_number_gives_the_same_sentence() -> None:
    scene = scenes(1)[0]
    assert caption(scene, random.Random(5)) == caption(scene, random.Random(5))


def test_no_pattern_of_evaluation_is_one_of_training() -> None:
    learnt = {pattern for patterns in grammar.RULES.values() for pattern in patterns}
    tested = {pattern for patterns in heldout.RULES.values() for pattern in patterns}
    assert not learnt & tested
    # Nor is its frame one, the words that stand around the symbols.
    frames = {frame(pattern) for pattern in learnt}
    assert not {pattern for pattern in tested if frame(pattern) in frames}


def test_training_never_says_a_sentence_of_evaluation() -> None:
    rng = random.Random(14)
    tested = {
        read_tags(describe(Scene(rng.choice(SHAPES), rng.choice(COLOURS), "blue"), rng, heldout.RULES, "single-on"))[0]
        for _ in range(2000)
    }
    assert not tested & {caption(scene, rng) for scene in scenes(3000)}


def frame(pattern: str) -> str:
    return re.sub(r"<[^<>]+>", "·", pattern)


def test_every_value_has_a_code_of_its_own() -> None:
    for attribute, vectors in zip(ATTRIBUTES, codes.tables(), strict=True):
        assert len(vectors) == len(codes.OPTIONS[attribute])
        alike = vectors @ vectors.T / vectors.shape[1]
        assert alike.fill_diagonal_(0).max() < 0.75
    assert set(TAGS.values()) >= {1, 2, 3}
    assert "红" in MEANINGFUL
