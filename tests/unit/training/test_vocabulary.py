"""Warnings and drawing agree: the catalogue's words for mini-zh are those of its training, and it understands each."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from common.catalog.catalog import read
from common.recipes.recipe import Draft, resolve
from common.recipes.token_counter import warnings
from training import words
from training.text import understood
from training.tokens import tokenizer
from training.world import COLOURS, LANDSCAPES, SHAPES

HOME = Path(__file__).parents[3]
CATALOG = read(HOME / "models" / "catalog.toml")
MINI = CATALOG.get("mini-zh")
README = (HOME / "models" / "mini-zh" / "README.md").read_text("utf-8")


def is_warned_about(prompt: str) -> bool:
    fields: dict[str, Any] = {"prompt": prompt, "model": "mini-zh"}
    return bool(warnings(resolve(Draft(**fields), CATALOG, "mini-zh", root_seed=1), MINI))


def known() -> Iterator[tuple[str, str, str]]:
    """Every word for what can be drawn, in both scripts and in English: the attribute that it names, and its value."""
    for shape, noun in words.SHAPES.items():
        for word in noun.words:
            yield from ((form, "shape", shape) for form in {word, words.traditional(word)})
    for landscape, names in words.LANDSCAPES.items():
        for word in names:
            yield from ((form, "background", landscape) for form in {word, words.traditional(word)})
    for shape, names in words.ENGLISH["shapes"].items():
        for word in names:
            yield from ((form, "shape", shape) for form in (word, f"{word}s", word.capitalize()))


@pytest.fixture(scope="module")
def encoder() -> Any:
    return BertModel.from_pretrained(HOME / "models" / "mini-zh" / "text_encoder").float().eval()


def test_the_catalogue_has_the_words_of_training() -> None:
    assert MINI.vocabulary is not None
    assert MINI.vocabulary.words == words.drawable()
    assert MINI.vocabulary.other_words == words.undrawable()


def test_no_word_that_can_be_drawn_is_warned_about() -> None:
    assert [word for word, _, _ in known() if is_warned_about(word)] == []


def test_every_word_that_is_not_warned_about_is_understood(encoder: Any) -> None:
    """Also those of the catalogue that are parts of words: each is the whole of one, or a word has it."""
    prompts = [(word, attribute, value) for word, attribute, value in known()]
    prompts += [(f"红色的{word}", attribute, value) for word, attribute, value in prompts if attribute == "shape"]
    read_as = understood([prompt for prompt, _, _ in prompts], encoder, tokenizer())
    wrong = [
        (prompt, found)
        for (prompt, attribute, value), found in zip(prompts, read_as, strict=True)
        if found[attribute] != value
    ]
    assert wrong == []
    assert MINI.vocabulary is not None
    every = {word.lower() for word, _, _ in known()}
    assert [word for word in MINI.vocabulary.words if word not in every] == []


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_understood_in_each_script_and_in_english(encoder: Any, colour: str) -> None:
    names = {words.COLOURS[colour][0], words.traditional(words.COLOURS[colour][0]), *words.ENGLISH["colours"][colour]}
    prompts = [pattern.format(name) for name in names for pattern in ("{}色的圆形", "{} 圓", "一颗{}色的星星")]
    assert {found["colour"] for found in understood(prompts, encoder, tokenizer())} == {colour}


@pytest.mark.parametrize(
    "prompt",
    [
        "一条可爱的小狗",
        "红色的汽车",
        "开心的小狗",
        "紅色的房間",
        "足球",
        "在右上方画一只狗",
        "熊猫",
        "a red car",
        "hundreds of carts",
    ],
)
def test_what_it_cannot_draw_is_warned_about(prompt: str) -> None:
    assert is_warned_about(prompt)


@pytest.mark.parametrize(
    "prompt", ["紅色的圓形", "綠樹", "黑貓", "太陽", "Red circle", "three STARS", "没有月亮的夜空", "小心心"]
)
def test_what_it_can_draw_is_not(prompt: str) -> None:
    assert not is_warned_about(prompt)


def test_the_readme_lists_what_can_be_drawn() -> None:
    rows = {name.strip(): row for name, row in re.findall(r"^\| ([a-z ,]+) \|(.*)\|$", README, re.MULTILINE)}
    for row, tables in (
        ("draws", [noun.words for noun in words.SHAPES.values()]),
        ("scenes", words.LANDSCAPES.values()),
    ):
        for names in tables:
            assert any(word in rows[row] for word in names), names
    colours = rows["colours, of shapes and backgrounds"].split()
    assert colours == [words.COLOURS[colour][0] for colour in COLOURS]
    assert len(words.SHAPES) == len(SHAPES)
    assert len(words.LANDSCAPES) == len(LANDSCAPES)
