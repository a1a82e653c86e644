"""The Chinese words for everything that mini-zh can draw, read from `words.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("words.toml")
Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Noun:
    words: tuple[str, ...]
    measures: str  # 量词
    adjectives: tuple[str, ...]


def _names(table: dict[str, list[str]]) -> Names:
    return {name: tuple(words) for name, words in table.items()}


_READ = tomllib.loads(FILE.read_text("utf-8"))
COLOURS = _names(_READ["colours"])
LIKE = _names(_READ["like"])
SIZES = _names(_READ["sizes"])
NUMBERS = _names(_READ["numbers"])
PLACES = _names(_READ["places"])
BARE_PLACES = _names(_READ["bare-places"])
LANDSCAPES = _names(_READ["landscapes"])
BACKDROPS: tuple[str, ...] = tuple(_READ["backdrops"])
ADJECTIVES: tuple[str, ...] = tuple(_READ["adjectives"])
SHAPES = {
    name: Noun(tuple(noun["words"]), noun["measures"], tuple(noun["adjectives"]))
    for name, noun in _READ["shapes"].items()
}
IDLE = "".join(_READ["idle"])
OTHERS: tuple[str, ...] = tuple(_READ["others"])
TRADITIONAL_OTHERS: tuple[str, ...] = tuple(_READ["traditional-others"])
IDIOMS: tuple[str, ...] = tuple(_READ["idioms"])
AMBIGUOUS: tuple[str, ...] = tuple(_READ["ambiguous"])
TRADITIONAL = str.maketrans("".join(_READ["simplified"]), "".join(_READ["traditional"]))
ENGLISH = {kind: _names(table) for kind, table in _READ["english"].items()}


def traditional(word: str) -> str:
    return word.translate(TRADITIONAL)


def drawable() -> tuple[str, ...]:
    """What the catalogue lists as the vocabulary: every word for something that can be drawn, in both scripts.

    A word that contains another of them is left out. English words stand by themselves, so a plural is another word.
    """
    chinese = {word for noun in SHAPES.values() for word in noun.words}
    chinese |= {word for names in LANDSCAPES.values() for word in names}
    chinese |= {traditional(word) for word in chinese}
    shortest = [word for word in chinese if not any(other in word for other in chinese - {word})]
    english = [form for names in ENGLISH["shapes"].values() for word in names for form in (word, f"{word}s")]
    return (*sorted(shortest), *english)


def undrawable() -> tuple[str, ...]:
    """The catalogue's other words, in both scripts: they contain a word that can be drawn, and mean something else."""
    return tuple(sorted({*OTHERS, *TRADITIONAL_OTHERS}))
