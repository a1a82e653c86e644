"""The recipes of a batch, and its errors, are those that its prompts would have as single jobs."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.batches.plan import Plan, Planner, planners
from common.catalog.catalog import read
from common.errors import Invalid, UnknownModel, wrong_fields
from common.prompt_files.columns import Columns
from common.recipes.recipe import MAX_SEED, Draft, Recipe, resolve

CATALOG = read(Path(__file__).parents[3] / "models" / "catalog.toml")
FULL = {
    "model": "zh-v0",
    "negative_prompt": "水印，\\",
    "steps": 7,
    "guidance": 3,
    "format": "webp",
    "scheduler": "lms",
}
PLANS = [
    Plan(images_per_prompt=1, seed=0),
    Plan(defaults={"model": "mini-zh"}, images_per_prompt=3, seed=MAX_SEED - 4),
    Plan(defaults=FULL, images_per_prompt=2, seed=9),
    Plan(defaults={"seed": 5}, images_per_prompt=2, seed=9),
]

prompts = st.one_of(st.text(min_size=1), st.text("红色圆 \\\"'\t\r\n\x07\x7f\u2028🦊", min_size=1))
odd_prompts: st.SearchStrategy[Any] = st.sampled_from(
    ["", " \n", "a\0b", "\ud800", "红" * 8001, 7, None, True, ["红"], {}]
)
NUMBERS = [0, 1, 2, -1, 1.0, 7.5, True, None, "3", float("nan"), 10**30, MAX_SEED, MAX_SEED + 1]
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": prompts | odd_prompts,
    "model": st.sampled_from(["mini-zh", "zh-v0", "nobody", "", None, 3]),
    "width": st.sampled_from([64, 72, 65, 8, 2048, None, 64.0]),
    "steps": st.sampled_from(NUMBERS),
    "guidance": st.sampled_from(NUMBERS),
    "count": st.sampled_from(NUMBERS),
    "seed": st.sampled_from(NUMBERS),
    "seeds": st.sampled_from([[1], [3, 3], [], [1, 1.0], [True], None, "12", [MAX_SEED + 1], [1] * 65]),
    "mode": st.sampled_from(["text2image", "inpaint", None]),
    "step": st.just(3),
}


def file_of(names: set[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lines that may have these fields."""
    line = st.fixed_dictionaries(
        {"prompt": prompts | odd_prompts}, optional={name: FIELDS[name] for name in sorted(names)}
    )
    return st.lists(line | st.fixed_dictionaries({}, optional={**FIELDS, "prompt": prompts}), min_size=1, max_size=8)


files = st.sets(st.sampled_from(sorted(FIELDS)), max_size=2).flatmap(file_of)


def as_a_job(plan: Plan, line: Mapping[str, Any], place: int) -> Recipe:
    """The recipe of a line without templates."""
    common = {"count": plan.images_per_prompt, **plan.defaults}
    if "seeds" in line:
        del common["count"]
    try:
        draft = Draft.model_validate({**common, **line})
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None
    root_seed = (plan.seed + place * plan.images_per_prompt) % (MAX_SEED + 1)
    return resolve(draft, CATALOG, plan.defaults.get("model", CATALOG.default), root_seed)


def outcome(make: Any, *arguments: Any) -> Any:
    """The recipe, or the error with its fields."""
    try:
        made = make(*arguments)
    except Invalid as error:
        return type(error), error.message, error.fields
    return made


@pytest.mark.parametrize("plan", PLANS, ids=["least", "several", "full", "seed"])
@given(files, st.integers(0, 10**7))
@settings(max_examples=200, deadline=None)
def test_a_line_becomes_what_it_would_be_as_a_job(plan: Plan, some: list[dict[str, Any]], place: int) -> None:
    planner = Planner(plan, CATALOG)
    for at, line in enumerate([*some, *some], place):  # the second time by templates
        found, wanted = outcome(planner.plan, line, at), outcome(as_a_job, plan, line, at)
        if isinstance(wanted, Recipe):
            assert found.recipe == wanted
            assert json.loads(found.json) == json.loads(wanted.model_dump_json())
            assert found.template.lane == (wanted.compatibility, wanted.model, 1)
        else:
            assert found == wanted


def test_equal_lines_share_a_template() -> None:
    planner = Planner(Plan(images_per_prompt=1, seed=0), CATALOG)
    templates = [
        planner.plan({"prompt": str(place), **more}, place).template
        for place, more in enumerate([{}, {}, {"steps": 2, "seed": 1}, {"steps": 2, "seed": 7}])
    ]
    assert templates[0] is templates[1] is not templates[2] is templates[3]


def test_what_long_lines_say_is_not_kept() -> None:
    matrix = {"guidance": [1 + n / 10 for n in range(20)]}
    variants = planners(Plan(defaults={"model": "mini-zh"}, matrix=matrix, images_per_prompt=1, seed=0), CATALOG)
    tracemalloc.start()
    for n in range(20):
        fields, _ = Columns(keep=()).read(
            {"prompt": "红", "negative_prompt": f"{n}" + "水" * 100_000, f"{n}" + "x" * 100_000: 1}
        )
        for variant in variants:
            with pytest.raises(Invalid):
                variant.plan(fields, 0)
    del fields
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2_000_000


def test_equal_numbers_of_different_types_are_different() -> None:
    planner = Planner(Plan(images_per_prompt=1, seed=0), CATALOG)
    planner.plan({"prompt": "红", "steps": 1}, 0)
    for wrong in (1.0, True):
        with pytest.raises(Invalid):
            planner.plan({"prompt": "红", "steps": wrong}, 0)


def test_a_plan_that_is_wrong_for_every_prompt_is_refused_at_once() -> None:
    with pytest.raises(UnknownModel):
        Planner(Plan(defaults={"model": "nobody"}, images_per_prompt=1, seed=0), CATALOG)
