"""The layout of datasets: which plans are valid, and that a prompt's split depends on the prompt alone."""

from collections import Counter
from uuid import UUID

import pytest
from pydantic import ValidationError

from common.datasets.layout import FORMAT, DatasetPlan, text_sha256
from common.recipes.recipe import canonical_json

PROMPTS = [f"红色的圆形，第{n}幅" for n in range(4000)]
BATCH = UUID(int=7)


def test_the_remainder_of_the_splits_is_train() -> None:
    assert DatasetPlan().splits == {"train": 1.0}
    plan = DatasetPlan(splits={"validation": 0.2, "test": 0.1})
    assert plan.splits == {"test": 0.1, "train": 0.7, "validation": 0.2}
    assert DatasetPlan(splits=plan.splits) == plan
    assert DatasetPlan(splits={"a": 0.5, "b": 0.5}).split_names == ["a", "b"]


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"Test": 0.1}, "name"),
        ({"all": 0.1}, "name"),
        ({"a/b": 0.1}, "name"),
        ({"test": 0.0}, "share"),
        ({"test": float("nan")}, "share"),
        ({"test": 0.6, "validation": 0.6}, "sum"),
        ({"train": 0.6, "test": 0.1}, "sum"),
        ({f"s{n}": 0.1 for n in range(9)}, "most"),
    ],
)
def test_invalid_splits_are_refused(splits: dict[str, float], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DatasetPlan(splits=splits)


def test_splits_have_the_shares_that_were_asked_for() -> None:
    plan = DatasetPlan(splits={"test": 0.1, "validation": 0.2})
    found = Counter(map(plan.split_of, PROMPTS))
    assert {name: round(count / len(PROMPTS), 1) for name, count in found.items()} == plan.splits
    larger = DatasetPlan(splits={"test": 0.3})
    assert {p for p in PROMPTS if plan.split_of(p) == "test"} <= {p for p in PROMPTS if larger.split_of(p) == "test"}


def test_another_plan_has_another_digest() -> None:
    plans = (DatasetPlan(), DatasetPlan(layout="parquet"), DatasetPlan(splits={"test": 0.1}))
    assert len({plan.digest(batch) for plan in plans for batch in (BATCH, UUID(int=8))}) == 6
    assert DatasetPlan(splits={"train": 1}).digest(BATCH) == DatasetPlan().digest(BATCH)


def test_what_a_plan_does_not_say_changes_nothing() -> None:
    """Digests of plans stay as they were before there were conditions, sizes and formats."""
    before = {"format": FORMAT, "batch": str(BATCH), "layout": "webdataset", "splits": {"train": 1.0}}
    assert DatasetPlan().digest(BATCH) == text_sha256(canonical_json(before))
    others: list[dict[str, object]] = [
        {"where": "steps = 1"},
        {"shard_images": 9},
        {"shard_size": 10**6},
        {"image_format": "webp"},
        {"image_format": "webp", "quality": 80},
        {"resize": 64},
    ]
    plans = [DatasetPlan.model_validate(fields) for fields in others]
    assert len({plan.digest(BATCH) for plan in [DatasetPlan(), *plans]}) == 7
    assert {plan.needs_code for plan in plans} == {9}
    assert DatasetPlan().digest(BATCH, UUID(int=8)) != DatasetPlan().digest(UUID(int=8), BATCH)


@pytest.mark.parametrize(
    "fields", [{"quality": 80}, {"quality": 80, "image_format": "png"}, {"quality": 0}, {"resize": 8}, {"resize": "64"}]
)
def test_invalid_conversions_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DatasetPlan.model_validate(fields)
