"""Weights in prompts: what is syntax, and what is only text with parentheses."""

import pytest

from common.recipes.prompt_weighting import Fragment, has_weights, split_fragments, strip_weights, weight_error


def weights(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, round(part.weight, 6)) for part in split_fragments(prompt)]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("(猫:1.3)坐在(草地:.5)上", [("猫", 1.3), ("坐在", 1), ("草地", 0.5), ("上", 1)]),
        ("((猫:1.5)和狗:1.2)", [("猫", 1.8), ("和狗", 1.2)]),
        ("a (b (c:1.2) d:0.5) e", [("a ", 1), ("b ", 0.5), ("c", 0.6), (" d", 0.5), (" e", 1)]),
        ("(时间 12:30:1.5)", [("时间 12:30", 1.5)]),
        ("(猫 : 1.3 )", [("猫 ", 1.3)]),
        (r"(\(猫\):1.3)", [("(猫", 1.3), (")", 1.3)]),
        ("(:1.3)", []),
    ],
)
def test_a_text_and_a_number_in_parentheses_are_a_weight(prompt: str, found: list[tuple[str, float]]) -> None:
    assert weights(prompt) == found
    assert strip_weights(prompt) == "".join(text for text, _ in found)


@pytest.mark.parametrize(
    "prompt", ["猫", "(猫)", "(猫:)", "(猫:大)", "（猫:1.3）", "(猫：1.3)", "(猫:1.3", "猫:1.3)", "猫\\", ")(", ""]
)
def test_all_else_is_text(prompt: str) -> None:
    assert strip_weights(prompt) == prompt
    assert not has_weights(prompt)
    assert weight_error(prompt) is None


def test_an_escaped_parenthesis_is_one() -> None:
    assert strip_weights(r"\(猫:1.3\)") == "(猫:1.3)"
    assert strip_weights(r"\)") == ")"
    assert not has_weights(r"\(猫:1.3)")


def test_weights_out_of_range_are_errors() -> None:
    assert weight_error("(猫:2)和(狗:0)") is None
    for prompt in ("(猫:2.1)", "(猫:-1)", "((猫:1.5):1.5)"):
        assert "weighs '猫' by" in str(weight_error(prompt))


def test_a_prompt_of_nothing_but_parentheses_is_read_quickly() -> None:
    assert split_fragments("(" * 8000) == (Fragment("(" * 8000, 1.0),)
    assert strip_weights("(" * 2000 + "猫" + ":1)" * 2000) == "猫"
