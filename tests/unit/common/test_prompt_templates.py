"""Templates of prompts: what they stand for, how many that is before any is made, and what is wrong with them."""

import tracemalloc
from collections import Counter
from math import prod
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.recipes.prompt_templates import (
    MAX_CHOICES,
    MAX_DEPTH,
    TemplateError,
    Templates,
    count_words,
    warnings,
)

WILDCARDS = {"颜色": ["红", "3::蓝"], "形状/平面": ["圆形", "正方形"]}


def prompts(text: str, seed: str = "1", **fields: Any) -> list[str]:
    templates = Templates(**{"wildcards": WILDCARDS, **fields})
    return [one.text for one in templates.prompts(templates.parse(text), seed)]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("{红|蓝}色的{圆形|正方形}", ["红色的圆形", "红色的正方形", "蓝色的圆形", "蓝色的正方形"]),
        ("{深|}{红|{天|海}蓝}", ["深红", "深天蓝", "深海蓝", "红", "天蓝", "海蓝"]),
        ("__颜色__的__形状/平面__", ["红的圆形", "红的正方形", "蓝的圆形", "蓝的正方形"]),
        ("{3::红|.5 ::蓝}", ["红", "蓝"]),
        ("{一只__颜色__猫|狗}", ["一只红猫", "一只蓝猫", "狗"]),
        (r"\{红\|蓝\} \__颜色__ \\", ["{红|蓝} __颜色__ \\"]),
        ("100% 5$ #1 a|b (猫:1.3) \\(x\\) ____ a__b 3::c", ["100% 5$ #1 a|b (猫:1.3) \\(x\\) ____ a__b 3::c"]),
        ("{红}", ["红"]),
        ("{ 红 | 蓝}", [" 红 ", " 蓝"]),
        ("", [""]),
    ],
)
def test_a_template_stands_for_all_its_combinations(text: str, made: list[str]) -> None:
    assert prompts(text) == made
    assert Templates(wildcards=WILDCARDS).parse(text).count == len(made)


def test_variables_have_the_names_of_wildcards_and_the_numbers_of_choices() -> None:
    templates = Templates(wildcards=WILDCARDS)
    template = templates.parse("{红|{天|海}蓝}__颜色__和__颜色__{大|小}")
    found = [one.variables for one in templates.prompts(template, "")]
    assert found[0] == {"1": "红", "颜色": "红", "颜色_2": "红", "3": "大"}
    assert found[-1] == {"1": "海蓝", "2": "海", "颜色": "蓝", "颜色_2": "蓝", "3": "小"}
    assert len({tuple(one.items()) for one in found}) == template.count == 24


parts = st.recursive(
    st.text("红蓝ab :%", max_size=3).filter(lambda text: "::" not in text),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda options: "{" + "|".join(options) + "}"),
    max_leaves=6,
)


@given(st.lists(parts, max_size=4).map("".join))
def test_the_number_and_the_size_are_known_before(text: str) -> None:
    templates = Templates()
    template = templates.parse(text)
    made = list(templates.prompts(template, ""))
    assert len(made) == template.count
    for one in made:
        assert len(one.text) + sum(len(name) + len(value) for name, value in one.variables.items()) <= template.size


@given(st.text("红{}|_\\a:3$ ", max_size=30))
def test_any_text_is_a_template_or_says_what_is_wrong(text: str) -> None:
    templates = Templates(wildcards={"a": ["x", "y"]})
    try:
        template = templates.parse(text)
    except TemplateError as error:
        event(error.reason.code)
    else:
        assert template.count >= 1
    escaped = "".join(f"\\{one}" if one in "{}|_\\" else one for one in text)
    assert prompts(escaped) == [text]


def test_counting_makes_nothing() -> None:
    templates = Templates(wildcards={"a": [str(n) for n in range(10_000)]})
    tracemalloc.start()
    template = templates.parse("__a__" * MAX_CHOICES)
    assert template.count == 10_000**MAX_CHOICES
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert (count_words(1024), count_words(template.count)) == ("1,024", "more than 1,000,000,000,000,000")


def test_samples_follow_from_the_seed_and_are_drawn_by_weight() -> None:
    text = "{3::红|蓝}色的__形状/平面__"
    assert prompts(text, samples=20) == prompts(text, samples=20)
    assert prompts(text, samples=20) != prompts(text, "2", samples=20)
    assert prompts(text, samples=20)[:7] == prompts(text, samples=7)
    found = Counter(one[0] for one in prompts(text, samples=4000))
    assert 2850 < found["红"] < 3150
    assert set(prompts("__颜色__", samples=50)) == {"红", "蓝"}
    # The same on every machine and in every release: a dataset is drawn again by its seed.
    assert "".join(one[0] for one in prompts(text, samples=20)) == SAMPLED


SAMPLED = "红蓝红红蓝红红蓝红蓝红红红红红蓝红红红红"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("红{蓝|绿", r"opens a choice at '{蓝|绿' and does not close it; write \{ for"),
        ("红}", r"closes a choice at '}' that is not open; write \} for"),
        ("{2$$红|蓝}", "chooses several at '2$$红|蓝}'"),
        ("{1-2$$红|蓝}", "chooses several"),
        ("{0::红|蓝}", "weight of 0"),
        ("{1001::红|蓝}", "weight of 1001"),
        ("__没有__", "the wildcard '没有', of which no values are given; given are 颜色, 形状/平面"),
        ("{" * (MAX_DEPTH + 1) + "}" * (MAX_DEPTH + 1), "deeper than 10"),
        ("{a}" * (MAX_CHOICES + 1), "more than 100 choices"),
    ],
)
def test_a_wrong_template_says_where(text: str, says: str) -> None:
    with pytest.raises(TemplateError) as wrong:
        Templates(wildcards=WILDCARDS).parse(text)
    assert says in str(wrong.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"samples": 0}, "greater than or equal to 1"),
        ({"samples": 10_001}, "less than or equal to 10000"),
        ({"wildcards": {"_a": ["x"]}}, "there is a wildcard '_a'"),
        ({"wildcards": {"a": []}}, "'a' has no values"),
        ({"wildcards": {"a": ["{b|c}"]}}, "values are text"),
        ({"wildcards": {"a": ["__b__"]}}, "values are text"),
        ({"wildcards": {"a": ["0::x"]}}, "weight of 0"),
        ({"wildcards": {"a": ["x" * 50_001]}}, "50,001 characters are too many"),
        ({"wildcards": {"a": ["x"] * 10_001}}, "10,001 values"),
        ({"wildcards": {f"a{n}": ["x"] for n in range(201)}}, "at most 200"),
        ({"wildcards": {"a": [3]}}, "valid string"),
        ({"colours": {}}, "not permitted"),
    ],
)
def test_what_is_given_is_bounded(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Templates(**fields)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("画{红|蓝}色", "'{红|蓝}' is drawn as it stands: it is read as a template only in a batch with `template`"),
        ("__颜色__的圆", "'__颜色__' is drawn as it stands"),
        ("圆 <lora:ink:0.8>", "a LoRA is named in `lora` (`--lora ink:0.8`)"),
        ("圆 <lora:ink>", "(`--lora ink:1`)"),
    ],
)
def test_syntax_that_is_not_read_is_warned_of(prompt: str, says: str) -> None:
    (warning,) = warnings(prompt)
    assert says in warning
    assert len(warnings(prompt, is_of_template=True)) == ("lora" in prompt)


@pytest.mark.parametrize("prompt", ["红色的圆形", "{红}", "a__b", "____", "|", "}{", "<lora>", r"\__a__", ""])
def test_ordinary_text_is_not(prompt: str) -> None:
    assert warnings(prompt) == ()


def test_the_number_of_nested_choices() -> None:
    assert Templates().parse("{a|{b|c}{d|e}}{f|g|h}").count == prod((1 + 2 * 2, 3))
