"""The matrix of a batch: the variants that it makes of each prompt, and its errors."""

from typing import Any

import pytest

from common.batches.matrix import MAX_VARIANTS, variants
from common.batches.plan import Plan, planners
from common.catalog.catalog import read
from common.config import SHIPPED_CATALOG
from common.errors import Invalid

CATALOG = read(SHIPPED_CATALOG)


def test_lists_multiply_and_zip_pairs_them() -> None:
    matrix = {"guidance": [3, 7.5], "zip": [{"scheduler": ["lms", "pndm"], "model": ["zh-v0", "mini-zh"]}]}
    assert [tuple(variant.values()) for variant in variants(matrix)] == [
        ("zh-v0", "lms", 3),
        ("zh-v0", "lms", 7.5),
        ("mini-zh", "pndm", 3),
        ("mini-zh", "pndm", 7.5),
    ]


def test_an_empty_matrix_sets_nothing() -> None:
    assert variants({}) == variants({"zip": []}) == [{}]


def test_the_order_of_its_keys_decides_nothing() -> None:
    """It comes back from the database with its keys in another order."""
    assert variants({"steps": [1, 2], "model": ["a", "b"]}) == variants({"model": ["a", "b"], "steps": [1, 2]})
    assert variants({"steps": [2, 1]}) == [{"steps": 2}, {"steps": 1}]


@pytest.mark.parametrize(
    ("matrix", "field", "says"),
    [
        ({"colour": ["红"]}, "matrix", "'colour', which is none of"),
        ({"seed": [1, 2]}, "matrix.seed", "for each prompt"),
        ({"steps": []}, "matrix.steps", "one value or more"),
        ({"steps": 5}, "matrix.steps", "one value or more"),
        ({"steps": [5, 5]}, "matrix.steps", "twice"),
        ({"zip": {"steps": [5]}}, "matrix.zip", "list such as"),
        ({"zip": [{}]}, "matrix.zip", "list such as"),
        ({"zip": [{"steps": [1, 2], "guidance": [3]}]}, "matrix.zip.0", "steps has 2, guidance has 1"),
        ({"zip": [{"steps": [1, 1], "guidance": [3, 3]}]}, "matrix.zip.0", "twice"),
        ({"steps": [1], "zip": [{"steps": [2]}]}, "matrix.zip.0.steps", "twice"),
        ({"steps": list(range(MAX_VARIANTS + 1))}, "matrix", "257 variants"),
    ],
)
def test_errors_name_their_field(matrix: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        variants(matrix)
    (wrong,) = refused.value.fields
    assert (wrong.field, says in wrong.message) == (field, True)


def test_all_variants_of_a_prompt_have_its_seeds() -> None:
    plan = Plan(defaults={"model": "mini-zh"}, matrix={"steps": [2, 3]}, images_per_prompt=2, seed=10)
    made = [[each.plan({"prompt": "红"}, place).recipe for each in planners(plan, CATALOG)] for place in (0, 1)]
    assert [[(recipe.steps, recipe.seeds) for recipe in recipes] for recipes in made] == [
        [(2, (10, 11)), (3, (10, 11))],
        [(2, (12, 13)), (3, (12, 13))],
    ]
    first, _ = planners(plan, CATALOG)
    assert first.plan({"prompt": "红", "seed": 5, "guidance": 3.5}, 0).seeds == (5, 6)
    with pytest.raises(Invalid, match="steps is in the matrix"):
        first.plan({"prompt": "红", "steps": 4}, 0)
