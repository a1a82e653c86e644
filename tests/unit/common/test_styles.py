"""Styles: their entries, what they make of a recipe, and that keys and policies go by what is drawn."""

from dataclasses import replace
from typing import Any

import pytest

from common.batches.matrix import variants
from common.batches.plan import Plan, planners
from common.catalog.catalog import read
from common.catalog.styles import Style, read_style
from common.config import SHIPPED_CATALOG
from common.errors import Invalid, RefusedByPolicy
from common.policy.policy import Policy, load
from common.recipes import judged
from common.recipes.recipe import Draft, Recipe, resolve

INK = Style("ink", prefix="水墨画：", suffix="，留白", negative="照片")
LIGHT = Style("light", suffix="，(发光:1.3)")
GLOW = Style("glow", suffix="的光")
CATALOG = replace(read(SHIPPED_CATALOG), styles={"ink": INK, "light": LIGHT, "glow": GLOW})


def recipe(**fields: Any) -> Recipe:
    return resolve(Draft(**{"prompt": "红色的圆形", "model": "zh-v0", **fields}), CATALOG, "zh-v0", root_seed=7)


def test_a_recipe_has_the_prompts_that_are_drawn_and_knows_the_written_ones() -> None:
    drawn = recipe(style="ink", negative_prompt="水印")
    assert (drawn.prompt, drawn.negative_prompt) == ("水墨画：红色的圆形，留白", "水印, 照片")
    assert (drawn.written_prompt, drawn.written_negative_prompt) == ("红色的圆形", "水印")
    assert recipe(style="ink").negative_prompt == "照片"
    assert recipe(style="ink").written_negative_prompt == ""
    taiyi = recipe(style="ink", model="taiyi")
    assert taiyi.negative_prompt == f"{CATALOG.get('taiyi').negative_prompt}, 照片"
    assert Recipe.model_validate(drawn.model_dump(mode="json")) == drawn
    odd = recipe(prompt="水墨画：，留白，留白", style="ink", negative_prompt="照片, ")
    assert (odd.written_prompt, odd.written_negative_prompt) == ("水墨画：，留白，留白", "照片, ")


def test_plain_is_no_style() -> None:
    assert recipe(style="plain") == recipe() == recipe(style=None)
    assert recipe(style="plain").needs_code == 1
    assert [variant["style"] for variant in variants({"style": ["plain", "ink"]})] == ["plain", "ink"]


def test_the_key_of_a_picture_follows_what_is_drawn() -> None:
    by_hand = recipe(prompt="水墨画：红色的圆形，留白", negative_prompt="水印, 照片")
    styled = recipe(style="ink", negative_prompt="水印")
    assert styled != by_hand
    assert (styled.content, styled.digest) == (by_hand.content, by_hand.digest)
    assert styled.digest != recipe(negative_prompt="水印").digest


def test_older_code_leaves_a_style_alone() -> None:
    """It would not know it: neither in a job nor in the plan of a batch, where `plain` is a value of the field too."""
    assert recipe(style="ink").needs_code == 9
    plan = Plan(defaults={"model": "zh-v0"}, images_per_prompt=1, seed=1)
    assert plan.needs_code == 1
    for fields in ({"defaults": {"style": "plain"}}, {"matrix": {"style": ["plain", "ink"]}}):
        assert plan.model_copy(update=fields).needs_code == 9


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"style": "oil"}, "is 'oil'; the catalogue has plain, ink, light, glow"),
        ({"style": ""}, "is ''; the catalogue has"),
        ({"style": "ink", "model": "flux-schnell"}, "has a negative prompt, and flux-schnell reads none"),
        ({"style": "light", "model": "flux-schnell"}, "with which the prompt gives parts of the text weights"),
    ],
)
def test_a_style_that_cannot_be_drawn_is_refused_by_its_field(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as refused:
        recipe(**fields)
    (wrong,) = refused.value.fields
    assert (wrong.field, says in wrong.message) == ("style", True), wrong.message


def test_a_prompt_that_is_wrong_by_itself_stays_so() -> None:
    for prompt in ("", " \n", "a\0b", "(红:9)"):
        with pytest.raises(Invalid) as refused:
            recipe(prompt=prompt, style="ink")
        assert [error.field for error in refused.value.fields] == ["prompt"]


def test_a_batch_draws_each_prompt_plain_and_in_each_style_from_the_same_seeds() -> None:
    plan = Plan(defaults={"model": "zh-v0"}, matrix={"style": ["plain", "ink"]}, images_per_prompt=2, seed=100)
    plain, ink = planners(plan, CATALOG)
    lines: list[dict[str, Any]] = [{"prompt": "红"}, {"prompt": "绿", "steps": 9}, {"prompt": "蓝", "seed": 3}]
    for position, fields in enumerate(lines):
        both = [planner.plan(fields, position) for planner in (plain, ink)]
        assert both[0].seeds == both[1].seeds
        assert [job.prompt for job in both] == [fields["prompt"], f"水墨画：{fields['prompt']}，留白"]
        for job, style in zip(both, ("plain", "ink"), strict=True):
            draft = Draft(**{"model": "zh-v0", "count": 2, "style": style, **fields})
            assert job.recipe == resolve(draft, CATALOG, "zh-v0", 100 + 2 * position)
            assert Recipe.model_validate_json(job.json) == job.recipe
    with pytest.raises(Invalid, match="in the matrix"):
        ink.plan({"prompt": "红", "style": "ink"}, 0)


def test_a_batch_refuses_a_prompt_that_is_wrong_only_as_its_style_draws_it() -> None:
    catalog = replace(CATALOG, styles={"strong": Style("strong", prefix="(", suffix=":1.2)")})
    (planner,) = planners(Plan(defaults={"model": "zh-v0", "style": "strong"}, images_per_prompt=1, seed=1), catalog)
    assert planner.plan({"prompt": "红"}, 0).prompt == "(红:1.2)"
    with pytest.raises(Invalid) as refused:
        planner.plan({"prompt": "红:9)(绿"}, 1)
    (wrong,) = refused.value.fields
    assert (wrong.field, "weighs '红' by 9" in wrong.message) == ("style", True)


def test_a_line_may_name_its_style_and_plain_lifts_that_of_the_batch() -> None:
    (planner,) = planners(Plan(defaults={"model": "zh-v0", "style": "ink"}, images_per_prompt=1, seed=1), CATALOG)
    assert planner.plan({"prompt": "红"}, 0).prompt == "水墨画：红，留白"
    assert planner.plan({"prompt": "红", "style": "plain"}, 0).prompt == "红"
    assert planner.plan({"prompt": "红", "style": "light"}, 0).prompt == "红，(发光:1.3)"


@pytest.fixture
def policy(tmp_path: Any) -> Policy:
    (tmp_path / "policy.toml").write_text('version = "7"\n[[rules]]\nname = "a"\nterms = ["照片", "圆形的光"]', "utf-8")
    return load(tmp_path / "policy.toml")


def test_a_policy_judges_the_prompt_that_is_drawn_but_not_the_negative_prompt_of_a_style(policy: Policy) -> None:
    judged.require(policy, recipe(style="ink", prompt="红"), CATALOG)
    assert judged.refusal_of_stored(recipe(style="ink", prompt="红").model_dump(mode="json"), CATALOG, policy) is None
    for wrong in (recipe(style="ink", negative_prompt="照片"), recipe(style="glow", prompt="红色的圆形")):
        with pytest.raises(RefusedByPolicy):
            judged.require(policy, wrong, CATALOG)
        assert judged.refusal_of_stored(wrong.model_dump(mode="json"), CATALOG, policy)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("plain", {"suffix": "，墨"}),
        ("a,b", {"suffix": "，墨"}),
        ("", {"suffix": "，墨"}),
        ("ink", {}),
        ("ink", {"description": "nothing"}),
        ("ink", {"suffix": 3}),
        ("ink", {"suffix": "墨" * 1001}),
        ("ink", {"suffix": "a\0b"}),
        ("ink", {"suffix": "墨", "colour": "red"}),
        ("ink", "墨"),
    ],
)
def test_a_wrong_entry_is_refused(name: str, entry: Any) -> None:
    with pytest.raises(TypeError):
        read_style(name, entry)


def test_the_shipped_styles_are_read() -> None:
    assert list(read(SHIPPED_CATALOG).styles) == ["ink", "oil", "anime", "photo", "blackboard"]
