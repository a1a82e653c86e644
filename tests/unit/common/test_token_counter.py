"""Prompts are counted as the model's tokenizer counts them, and refused rather than truncated."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from common.catalog.catalog import Model, read
from common.catalog.vocabulary import Vocabulary
from common.errors import PromptTooLong
from common.recipes.recipe import Draft, Recipe, resolve
from common.recipes.token_counter import TokenCounter, check, find_suspects, known_characters, warnings

CATALOG = read(Path(__file__).parents[3] / "models" / "catalog.toml")
MINI = CATALOG.get("mini-zh")


def recipe(prompt: str, **fields: Any) -> Recipe:
    return resolve(Draft(prompt=prompt, model="mini-zh", **fields), CATALOG, "mini-zh", root_seed=1)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("红色的圆形", 5),
        ("红色，圆形。", 6),
        ("[SEP]", 5),  # [ s ##e ##p ]
        ("😀😀😀", 1),  # one unknown word
        ("红😀色", 3),
        ("CAT", 1),  # a word that mini-zh knows
        ("cow", 3),  # c ##o ##w
        ("한국어", 1),
        ("é", 1),  # read without its accent, as e
        ("红\u200b\ufeff色", 2),  # characters of no width are none
    ],
)
def test_what_a_text_counts(text: str, tokens: int) -> None:
    assert TokenCounter(MINI.tokenizer_file).count(text).tokens == tokens + 2  # [CLS] and [SEP] frame it


def test_the_longest_prompt_passes_and_one_more_token_does_not() -> None:
    check(recipe("红" * 46, negative_prompt="黑" * 46), MINI)
    with pytest.raises(PromptTooLong) as raised:
        check(recipe("红" * 47), MINI)
    (error,) = raised.value.fields
    assert (error.field, error.message) == ("prompt", "has 49 tokens; mini-zh reads at most 48")


def test_the_negative_prompt_is_counted_too() -> None:
    with pytest.raises(PromptTooLong) as raised:
        check(recipe("红" * 90, negative_prompt="黑" * 80), MINI)
    assert [error.field for error in raised.value.fields] == ["prompt", "negative_prompt"]
    assert "82 tokens" in raised.value.message


def test_a_model_that_is_not_local_has_no_counter() -> None:
    elsewhere = replace(MINI, source_path=None, vocabulary=None)
    check(recipe("红" * 500), elsewhere)
    assert warnings(recipe("红" * 500), elsewhere) == ()


def test_another_tokenizer_in_the_same_place_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.recipes.token_counter.RECHECK_S", -1)
    model = replace(MINI, source_path=tmp_path)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.parent.mkdir()
    content = json.loads(MINI.tokenizer_file.read_text("utf-8"))
    file.write_text(json.dumps(content), "utf-8")
    check(recipe("红" * 46), model)
    content["post_processor"] = None
    file.write_text(json.dumps(content), "utf-8")
    os.utime(file, ns=(1, 1))
    check(recipe("红" * 48), model)  # without [CLS] and [SEP]


def test_a_prompt_outside_what_a_model_can_draw_gets_its_advice() -> None:
    assert warnings(recipe("红色的圆形"), MINI) == ()
    assert warnings(recipe("一条可爱的小狗"), MINI) == (MINI.vocabulary.advice,)


@pytest.mark.parametrize(
    ("prompt", "knows"),
    [
        ("地方", False), ("地方的方块", True), ("方便面", False), ("开心", False), ("开心的心", True),
        ("a Cat", True), ("红色cat", True), ("category", False), ("cats", False), ("", False),
    ],
)  # fmt: skip
def test_a_vocabulary_knows_a_word_where_it_is_no_part_of_another(prompt: str, knows: bool) -> None:
    known = Vocabulary(("方", "心", "cat"), "only these", other_words=("地方", "方便", "方便面", "开心"))
    assert known.knows(prompt) == knows
    assert not Vocabulary((), "nothing").knows(prompt)


def test_words_that_the_tokenizer_does_not_know_are_named() -> None:
    model: Model = replace(MINI, vocabulary=Vocabulary(("圆",), "only circles"))
    (line,) = warnings(recipe("红色的圆形 龘 😀 龘"), model)
    assert line.startswith("mini-zh cannot read 龘 😀 ")


COUNTER = TokenCounter(MINI.tokenizer_file)
CHARACTERS = known_characters(Tokenizer.from_file(str(MINI.tokenizer_file)))


@given(st.text(sorted(CHARACTERS.all)) | st.text("a1é红，[ \u200b", min_size=90))
@settings(max_examples=300, deadline=None)
def test_a_text_of_known_characters_has_no_unknown_word_and_at_most_one_token_each(text: str) -> None:
    if CHARACTERS.cover(text):
        count = COUNTER.count(text)
        assert (count.tokens <= len(text) + 2, count.unknown) == (True, ())


def test_which_texts_are_covered() -> None:
    assert all(CHARACTERS.cover(text) for text in ("红色的圆形，第12幅 a", "红，" * 200, "a" * 100))
    assert not any(CHARACTERS.cover(text) for text in ("a" * 101, "A", "é", "龘", "\u0301", "\u200b", "🦊"))


def test_a_tokenizer_of_another_kind_has_no_known_characters() -> None:
    other = Tokenizer(BPE({"红": 0, "##红": 1}, []))
    assert not known_characters(other).cover("红")


texts_of_all_sorts = st.one_of(
    st.text(),
    st.text("红圆龘a1é，[]# 😀\u200b\u0301İΣ한", max_size=60),
    st.integers(44, 49).map("红".__mul__),
)


@given(st.lists(texts_of_all_sorts), st.sampled_from(["", "黑" * 47]))
@settings(deadline=None)
def test_suspects_are_the_prompts_with_an_error_or_a_warning(texts: list[str], negative: str) -> None:
    texts = [text for text in texts if text.strip() and "\0" not in text]
    for model in (MINI, replace(MINI, vocabulary=None)):
        found = find_suspects(texts, negative, model)
        assert found == {at for at, text in enumerate(texts) if is_suspect(text, negative, model)}


def is_suspect(prompt: str, negative: str, model: Model) -> bool:
    drawn = recipe(prompt, negative_prompt=negative)
    try:
        check(drawn, model)
    except PromptTooLong:
        return True
    return bool(warnings(drawn, model))
