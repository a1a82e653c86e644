"""A draft becomes a complete recipe, or every field that is wrong is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.batches.plan import Plan
from common.catalog.catalog import FLOW_SCHEDULERS, SCHEDULERS, Catalog, Licence, read
from common.catalog.loras import Lora, read_lora
from common.catalog.manifest import ENTRY
from common.errors import Invalid, UnknownModel, pydantic_sentence
from common.recipes.recipe import MAX_SEED, SINCE, Draft, Recipe, resolve

FROM_THE_START = {
    *("prompt", "negative_prompt", "model", "width", "height", "steps"),
    *("scheduler", "guidance", "seeds", "mode", "format"),
}

CATALOG: Catalog = read(Path(__file__).parents[3] / "models" / "catalog.toml")


LORA: dict[str, Any] = {
    "source": "./ink.safetensors",
    "sha256": "0" * 64,
    "family": "stable-diffusion-zh",
    "licence": "none",
    "licence_url": "",
    "description": "Ink drawings.",
}


def recipe(**fields: object) -> Recipe:
    return resolve(Draft(**{"prompt": "红色的圆形", "model": "mini-zh", **fields}), CATALOG, "mini-zh", root_seed=7)


def wrong_fields(**fields: object) -> set[str]:
    with pytest.raises(Invalid) as raised:
        recipe(**fields)
    assert raised.value.message.count("\n") == 0
    return {error.field for error in raised.value.fields}


def test_what_is_left_out_comes_from_the_model() -> None:
    model = CATALOG.get("zh-v0")
    resolved = recipe(model="zh-v0")
    assert (resolved.width, resolved.height, resolved.steps) == (model.width, model.height, model.steps)
    assert (resolved.scheduler, resolved.guidance) == ("lms", 7.5)
    assert resolved.seeds == (7,)


def test_zero_is_a_value_and_not_left_out() -> None:
    assert recipe(guidance=0.0, seed=0, negative_prompt="").guidance == 0
    assert recipe(seed=0).seeds == (0,)
    assert wrong_fields(width=0) == {"width"}


def test_every_image_has_its_own_seed_and_they_wrap_at_64_bits() -> None:
    assert recipe(count=3, seed=MAX_SEED).seeds == (MAX_SEED, 0, 1)
    assert recipe(seeds=(9, 9, 4)).seeds == (9, 9, 4)
    assert wrong_fields(seeds=(1, 2), seed=3) == {"seeds"}
    assert wrong_fields(seeds=(1, 2), count=3) == {"count"}


def test_all_wrong_fields_are_named_at_once() -> None:
    assert wrong_fields(prompt=" \n", width=60, height=100, steps=1000, guidance=-1, count=0, scheduler="magic") == {
        "prompt",
        "width",
        "height",
        "steps",
        "guidance",
        "count",
        "scheduler",
    }


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "圆\0形"}, "prompt"),
        ({"prompt": "(圆形:3)"}, "prompt"),
        ({"prompt": "(:1.2)"}, "prompt"),
        ({"negative_prompt": "(圆形:3)"}, "negative_prompt"),
        ({"negative_prompt": "\0"}, "negative_prompt"),
        ({"steps": 0}, "steps"),
        ({"count": 65}, "count"),
        ({"width": 132}, "width"),
        ({"width": 32}, "width"),
        ({"width": 1024, "height": 128}, "width"),
        ({"width": 128, "height": 1024}, "height"),
        ({"guidance": 51}, "guidance"),
    ],
)
def test_limits(fields: dict[str, object], field: str) -> None:
    assert wrong_fields(**fields) == {field}


def test_unknown_models_are_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownModel, match="mini-zh"):
        recipe(model="maxi-zh")


def test_compatibility_ignores_prompts_and_seeds_only() -> None:
    same = {recipe(prompt=prompt, seed=seed).compatibility for prompt in "圆方" for seed in (1, 2)}
    other = {
        recipe(**change).compatibility
        for change in (
            {"width": 136},
            {"height": 136},
            {"steps": 21},
            {"scheduler": "lms"},
            {"guidance": 2.0000001},
            {"model": "zh-v0", "width": 128, "height": 128, "steps": 20, "scheduler": "ddim", "guidance": 2.0},
        )
    }
    assert len(same) == 1
    assert len(other) == 6
    assert not same & other


def test_loras_are_those_that_fit_the_model() -> None:
    def entry(name: str, **values: Any) -> Lora:
        return read_lora(name, {**LORA, **values}, Path())

    loras = {lora.name: lora for lora in (entry("ink"), entry("toy", family=None, models=["mini-zh"]))}
    loras["sd"] = entry("sd", family="stable-diffusion")
    catalog = replace(CATALOG, loras=loras)

    def lora(*uses: Any) -> Recipe:
        fields = {"model": "mini-zh", "lora": [{"name": name, "weight": weight} for name, weight in uses]}
        return resolve(Draft.model_validate({"prompt": "红色的圆形", **fields}), catalog, "mini-zh", root_seed=7)

    taken = lora(("ink", 0.5), ("toy", -1.0))
    assert [(use.name, use.weight) for use in taken.lora] == [("ink", 0.5), ("toy", -1)]
    assert len({taken.compatibility, lora(("ink", 0.6)).compatibility, recipe().compatibility}) == 3
    assert len({taken.digest, lora(("ink", 0.6)).digest, recipe().digest}) == 3
    for wrong, fields in (
        ([("nix", 1.0)], ["lora.0.name"]),
        ([("ink", 1.0), ("sd", 1.0)], ["lora.1.name"]),
        ([("ink", 1.0), ("ink", 2.5)], ["lora.1.name", "lora.1.weight"]),
    ):
        with pytest.raises(Invalid) as raised:
            lora(*wrong)
        assert [error.field for error in raised.value.fields] == fields


@pytest.mark.parametrize("change", [{"sha256": "beef"}, {"family": None}, {"source": "owner/name"}, {"colour": "red"}])
def test_a_wrong_entry_of_a_lora_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        read_lora("ink", {**LORA, **change}, Path())


def test_the_digest_names_the_recipe() -> None:
    assert recipe().digest == recipe().digest
    assert len({recipe().digest, recipe(seed=8).digest, recipe(format="webp").digest}) == 3
    assert Recipe.model_validate(recipe().model_dump(mode="json")) == recipe()


def test_a_field_at_its_default_is_neither_stored_nor_in_the_digest() -> None:
    """So what older code stores, and the keys of datasets, stay the same when a recipe gets a field."""
    assert {name for name, field in Recipe.model_fields.items() if field.is_required()} == FROM_THE_START
    assert set(recipe().model_dump(mode="json")) == FROM_THE_START == set(recipe().content)
    assert recipe().digest == "6a8824eee56246c2fde3cadb80e40f809f09df36eb9c92d405163c4c88aa3824"


def test_a_recipe_that_only_newer_code_understands_has_lanes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, plan = recipe(), Plan(defaults={"model": "mini-zh", "steps": 3}, images_per_prompt=1, seed=1)
    assert (plain.needs_code, plan.needs_code) == (1, 1)
    monkeypatch.setitem(SINCE, "strength", lambda value: 7)
    monkeypatch.setitem(SINCE, "scheduler", lambda value: 8 if value == "lms" else 1)
    assert recipe() == plain
    assert (recipe().needs_code, recipe().compatibility) == (1, plain.compatibility)
    newer = plain.model_copy(update={"strength": 0.5})
    assert newer.needs_code == 7
    assert newer.compatibility.endswith(" code 7")
    assert recipe(scheduler="lms").needs_code == 8
    for fields in ({"defaults": {**plan.defaults, "strength": 0.5}}, {"matrix": {"strength": [0.5, 0.6]}}):
        assert plan.model_copy(update=fields).needs_code == 7


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_new_scheduler_needs_new_code(scheduler: str) -> None:
    """Code of before would refuse the image, where newer code would render it."""
    since_code_3 = {"dpm++_singlestep", "kdpm2_a", "lcm", "tcd"}
    needed = 3 if scheduler in since_code_3 else 1
    assert recipe(scheduler=scheduler).needs_code == needed
    for fields in ({"defaults": {"scheduler": scheduler}}, {"matrix": {"scheduler": [scheduler]}}):
        assert Plan(**{"defaults": {}, "images_per_prompt": 1, "seed": 1, **fields}).needs_code == needed


@pytest.mark.parametrize("scheduler", FLOW_SCHEDULERS)
def test_a_scheduler_of_flow_models_is_for_no_model_of_today(scheduler: str) -> None:
    assert wrong_fields(scheduler=scheduler) == {"scheduler"}


@pytest.mark.parametrize("model", ["flux-schnell", "flux2-klein", "kolors", "qwen-image", "z-image"])
def test_weights_are_refused_where_they_would_be_read_as_text(model: str) -> None:
    assert wrong_fields(model=model, prompt="(红色:1.5)的圆形") == {"prompt"}
    assert recipe(model=model, prompt=r"\(红色:1.5)的圆形").prompt
    assert recipe(model="sdxl", prompt="(红色:1.5)的圆形").prompt


@pytest.mark.parametrize("scheduler", ["lcm", "tcd"])
def test_a_scheduler_of_few_steps_takes_no_more_than_its_model_was_distilled_with(scheduler: str) -> None:
    assert recipe(scheduler=scheduler, steps=50).steps == 50
    assert recipe(scheduler="ddim", steps=51).steps == 51
    assert wrong_fields(scheduler=scheduler, steps=51) == {"steps"}
    assert wrong_fields(scheduler=scheduler, steps=1000) == {"steps"}


def test_models_share_the_entry_of_a_licence(tmp_path: Path) -> None:
    zh, mini = CATALOG.get("zh-v0").licence, CATALOG.get("mini-zh").licence
    assert (zh.name, zh.version) == ("CreativeML OpenRAIL-M", "2022-08-22")
    assert len(zh.restrictions) == 11
    assert (mini.name, mini.restrictions) == ("Apache-2.0", ())
    shipped = (Path(__file__).parents[3] / "models" / "catalog.toml").read_text(encoding="utf-8")
    file = tmp_path / "catalog.toml"
    file.write_text(shipped.replace('licence = "Apache-2.0"', 'licence = "MIT"\nlicence_url = "https://mit"'), "utf-8")
    assert read(file).get("mini-zh").licence == Licence("MIT", "https://mit")


def test_a_licence_says_in_short_who_may_use_the_model_at_all() -> None:
    assert Licence("MIT", "").must_be_accepted is False
    licence = Licence("Research", "", territory="the European Union", revenue="1 million US$", non_commercial=True)
    assert licence.must_be_accepted
    assert licence.conditions == (
        "must not be used commercially",
        "is valid only in the European Union",
        "is only for users with a yearly revenue of up to 1 million US$",
    )
    forbidding = Licence("RAIL", "", restrictions=("to lie", "to harm"), non_commercial=True)
    assert forbidding.conditions == ("must not be used to lie; to harm", "must not be used commercially")


def test_an_imported_model_names_a_licence_by_its_id_on_the_hub(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "models" / "catalog.toml"
    lines = [
        '[models."mine"]',
        'source = "somebody/tuned"',
        'licence = "creativeml-openrail-m"',
        'licence_url = ""',
    ]
    lines += ['family = "stable-diffusion"', 'description = ""', "width = 64", "height = 64", "steps = 1"]
    lines += ['scheduler = "lms"']
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ENTRY).write_text("\n".join([*lines, "guidance = 1.0"]), "utf-8")
    assert read(shipped, tmp_path).get("mine").licence == CATALOG.get("zh-v0").licence


def test_a_catalogue_with_a_mistake_is_refused_in_one_sentence(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[3] / "models" / "catalog.toml").read_text(encoding="utf-8")
    for good, bad in (
        ('scheduler = "lms"', 'scheduler = "slow"'),
        ("steps = 50", "stepz = 50"),
        ("[models", "[models."),
        ('[licences."CreativeML', '[licences."Creative'),
    ):
        file = tmp_path / "catalog.toml"
        file.write_text(shipped.replace(good, bad), encoding="utf-8")
        with pytest.raises(Invalid, match=r"catalog\.toml .*\."):
            read(file)
    with pytest.raises(Invalid, match="cannot be read"):
        read(tmp_path / "nowhere.toml")


def test_a_text_that_is_too_long_is_refused_in_words() -> None:
    with pytest.raises(ValidationError) as raised:
        Draft.model_validate({"prompt": "红" * 8001})
    assert pydantic_sentence(raised.value.errors()[0]) == "should have at most 8000 characters"
