"""What a text of 8,000 characters costs, whichever characters it has: little time, and no memory that stays."""

import random
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from common.batches import plan
from common.batches.check import check_lines
from common.batches.plan import Plan, planners
from common.catalog.catalog import read
from common.errors import Invalid
from common.prompt_files.columns import Columns, field_of
from common.prompt_files.lines import Line
from common.recipes import prompt_weighting, token_counter
from common.recipes.recipe import Draft, Recipe, resolve
from common.recipes.text_cache import TextCache
from common.recipes.token_counter import TokenCounter

CATALOG = read(Path(__file__).parents[3] / "models" / "catalog.toml")
MINI = CATALOG.get("mini-zh")
PLAN = Plan.model_validate({"defaults": {"model": "mini-zh"}, "seed": 1})
LENGTH = 8000
MOST_S = 0.020
PIECES = (
    "(", ")", "\\(", "(:", ":", ": ", "1", "9", ".", " ", "\t\n", "(:1", "(:1111", "(a:1.1)", "(a:", "((a:1.1):1.1)",
    ":1)", "𰻝", "龘", "😀", "\u0301", "é́", "\u200b", "ﷺ", "한", "a", "ab ", "[SEP]", "##a", "ﬁ", "１", "，", "\0",
)  # fmt: skip
RARE = [chr(code) for code in range(0x20000, 0x20000 + 40_000)]


def hostile(piece: str) -> str:
    return (piece * LENGTH)[:LENGTH]


TEXTS = {
    **{repr(piece): hostile(piece) for piece in PIECES},
    "a number": ("(:" + "1" * LENGTH)[:LENGTH],
    "a fraction": ("(猫:." + "1" * LENGTH)[: LENGTH - 1] + ")",
    "spaces in a weight": ("(猫:" + " " * LENGTH)[:LENGTH],
    "a number and spaces": ("(猫:" + "1" * (LENGTH // 2) + " " * LENGTH)[:LENGTH],
    "deep": "(" * 1900 + "猫" + ":1)" * 1900,
    "long words": " ".join(["abcdefghij" * 10] * 79),
    "rare characters": "".join(RARE[:LENGTH]),
    "noise": "".join(random.Random(1).choices("(:1.)\\ a猫𰻝", k=LENGTH)),
}


def fastest(call: Callable[[str], object], text: str) -> float:
    """Seconds of CPU of this thread, the least of some tries; each with another text, which no cache has."""
    found = []
    for last in "甲乙丙":
        start = time.thread_time()
        with suppress(Invalid):
            call(text[:-1] + last)
        found.append(time.thread_time() - start)
    return min(found)


def recipe(prompt: str) -> Recipe:
    draft = Draft.model_validate({"prompt": prompt, "negative_prompt": prompt, "model": "mini-zh"})
    return resolve(draft, CATALOG, "mini-zh", root_seed=1)


COUNTER = TokenCounter(MINI.tokenizer_file)
STEPS: dict[str, Callable[[str], object]] = {
    "weights": prompt_weighting.strip_weights,
    "has weights": prompt_weighting.has_weights,
    "weight error": prompt_weighting.weight_error,
    "tokens": lambda text: COUNTER.count(text, MINI.token_limit),
    "words": lambda text: COUNTER.count(text[:2000]),
    "field": field_of,
    "recipe": recipe,
    "warnings": lambda text: token_counter.warnings(recipe("红").model_copy(update={"prompt": text}), MINI),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_step_takes_more_than_20_ms(step: str) -> None:
    slow = {name: took for name, text in TEXTS.items() if (took := fastest(STEPS[step], text)) > MOST_S}
    assert slow == {}


def test_a_batch_of_the_worst_lines_is_checked_in_linear_time() -> None:
    variants = planners(PLAN, CATALOG)

    def check(text: str) -> None:
        lines = [Line(at, at, at, f"{at}{text}", LENGTH, lambda prompt: {"prompt": prompt}) for at in range(6)]
        check_lines(lines, variants, 0, Columns(), CATALOG)

    assert fastest(check, "(:" + "1" * 7900) < 6 * 3 * MOST_S


def grown(work: Callable[[], object]) -> int:
    """The bytes that stay allocated."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_what_is_remembered_of_tokens_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counter, "MAX_CACHED_BYTES", 1_000_000)
    counter = TokenCounter(MINI.tokenizer_file)
    shifted = [" ".join(RARE[at : at + LENGTH // 2]) for at in range(0, 5000, 500)]
    assert grown(lambda: [counter.count(text) for text in shifted]) < 1_200_000
    assert 0 < counter.cached_bytes <= 1_000_000


@pytest.mark.parametrize(
    "long", ["红" * 60, "猫" * 8000, " ".join(RARE[:4000])], ids=["by a little", "without a space", "of rare words"]
)
def test_a_text_that_is_too_long_is_not_remembered(long: str) -> None:
    counter = TokenCounter(MINI.tokenizer_file)
    assert counter.count("红", 48).tokens == 3
    before = counter.cached_bytes
    for text in (long, long[1:], long):
        assert counter.count(text, 48).tokens > 48
    assert counter.cached_bytes == before
    assert grown(lambda: [counter.count(long[at:], 48) for at in range(50)]) < 200_000


def test_what_is_remembered_of_weights_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TextCache[tuple[prompt_weighting.Fragment, ...]](1_000_000, prompt_weighting._bytes_of)
    monkeypatch.setattr(prompt_weighting, "_cache", own)
    texts = ["".join(f"({a}:1)" for a in RARE[at : at + 1500]) for at in range(15)]
    assert grown(lambda: [prompt_weighting.split_fragments(text) for text in texts]) < 1_200_000
    assert 0 < own.bytes <= 1_000_000


def test_long_names_of_fields_are_not_remembered() -> None:
    assert grown(lambda: [field_of(f"{number} {'x' * 100_000}") for number in range(50)]) < 1_000_000


def test_the_fields_of_lines_are_remembered_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe that was made of them, which is larger."""
    monkeypatch.setattr(plan, "MAX_TEMPLATE_BYTES", 2_000_000)
    (planner,) = planners(PLAN, CATALOG)

    def make() -> None:
        for number in range(90):
            planner.plan({"prompt": "红", "negative_prompt": f"{number}{'猫' * 7900}"}, number)

    assert grown(make) < 2_400_000


def test_a_cache_is_emptied_rather_than_exceed_its_bytes() -> None:
    cache = TextCache[str](10_000, len)
    for number in range(100):
        cache.put(f"{number:03}", "x" * 1000)
        assert cache.bytes <= 10_000
        assert cache.get(f"{number:03}") == "x" * 1000
    cache.put("large", "x" * 10_000)
    assert cache.get("large") is None
