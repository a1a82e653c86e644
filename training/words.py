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
PLACES = _names(_READ["places"])
LANDSCAPES = _names(_READ["landscapes"])
BACKDROPS: tuple[str, ...] = tuple(_READ["backdrops"])
ADJECTIVES: tuple[str, ...] = tuple(_READ["adjectives"])
SHAPES = {
    name: Noun(tuple(noun["words"]), noun["measures"], tuple(noun["adjectives"]))
    for name, noun in _READ["shapes"].items()
}
IDLE = "".join(_READ["idle"])
TRADITIONAL = str.maketrans(_READ["simplified"], _READ["traditional"])
