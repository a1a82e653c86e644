"""What the columns of a file of prompts mean, which of them are kept, and what is left out."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Invalid
from common.prompt_files import columns
from common.prompt_files.columns import Columns, Keep, UnknownColumns, WrongColumns, field_of
from common.prompt_files.conversions import CONVERT
from common.recipes.origin import (
    EXACT,
    MAX_DEPTH,
    MAX_KEPT_BYTES,
    MAX_KEPT_COLUMNS,
    TYPES,
    cell_value,
    join_kinds,
    kept_json,
    kind_of,
    origin_json,
    wider,
    with_kinds,
)
from common.recipes.recipe import Draft


def test_each_name_means_one_field() -> None:
    names = [name for table in (columns.NAMES, columns.OTHER_NAMES) for names in table.values() for name in names]
    assert set(columns.NAMES) == set(Draft.model_fields)
    assert columns.OTHER_NAMES.keys() <= columns.NAMES.keys()
    assert len({*names, *columns.NAMES}) == len(names) + len(columns.NAMES)
    assert set(CONVERT) == set(Draft.model_fields)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"text": "门"}, {"prompt": "门"}),
        ({"Caption": "门", "cfg_scale": "7", "Sampler": "lms"}, {"prompt": "门", "guidance": 7.0, "scheduler": "lms"}),
        ({"prompt": "门", "negative": "雾", "step": 4}, {"prompt": "门", "negative_prompt": "雾", "steps": 4}),
        ({"提示词": "门", "反向提示词": None, "步数": float("nan")}, {"prompt": "门"}),
        ({"": 0, "prompt": "门"}, {"prompt": "门"}),
        ({"": 0, " ": 1, "prompt": "门"}, {"prompt": "门"}),  # an index of two levels
        ({"Unnamed: 0": 0, "Unnamed: 0.1": 0, "prompt": "门"}, {"prompt": "门"}),
        ({"prompt": "门", "__index_level_0__": 7}, {"prompt": "门"}),
        ({"image": {"bytes": {"bytes": 400_000}, "path": None}, "text": "门"}, {"prompt": "门"}),
        ({"prompt": "门", "id": None}, {"prompt": "门"}),
    ],
)
def test_names_that_people_and_programs_use_need_no_option(row: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    assert Columns().read(row) == (fields, {})


@pytest.mark.parametrize(
    ("named", "keep", "row", "fields", "kept"),
    [
        ({}, ("id",), {"prompt": "门", "id": 7, "url": "u"}, {"prompt": "门"}, {"id": 7}),
        ({}, (), {"prompt": "门", "id": 7}, {"prompt": "门"}, {}),
        ({}, "all", {"": 3, "prompt": "门", "id": 7, "text": "t"}, {"prompt": "门"}, {"id": 7, "text": "t"}),
        ({}, ("Unnamed: 0",), {"Unnamed: 0": 3, "prompt": "门"}, {"prompt": "门"}, {"Unnamed: 0": 3}),
        ({"prompt": "标题"}, ("prompt",), {"标题": "门", "prompt": "p"}, {"prompt": "门"}, {"prompt": "p"}),
        ({"prompt": "标题"}, ("标题",), {" 标题 ": "门"}, {"prompt": "门"}, {"标题": "门"}),
        ({"seed": "id"}, None, {"prompt": "门", "id": "7"}, {"prompt": "门", "seed": 7}, {}),
        ({}, ("text",), {"text": "门", "caption": "c"}, {"prompt": "c"}, {"text": "门"}),
        ({}, ("x",), {"prompt": "门", "x": float("nan")}, {"prompt": "门"}, {"x": None}),
    ],
)
def test_options_say_what_columns_mean_and_which_are_kept(
    named: Mapping[str, str], keep: Keep, row: Mapping[str, Any], fields: Mapping[str, Any], kept: Mapping[str, Any]
) -> None:
    assert Columns(named, keep).read(row) == (fields, kept)


def test_a_column_that_means_nothing_is_an_error_of_the_file_that_names_both_options() -> None:
    with pytest.raises(UnknownColumns) as found:
        Columns().read({"prompt": "门", "category": "c", "stpes": 3})
    assert found.value.names == ("category", "stpes")
    says = "No field of a recipe is called 'category', 'stpes'. --keep category,stpes or --keep all (keep) carries"
    assert str(found.value).startswith(says)
    assert "--column FIELD=category (columns)" in str(found.value)
    with pytest.raises(UnknownColumns):
        Columns({"prompt": "标题"}).read({"标题": "门", "prompt": "p"})


def test_two_names_of_one_field_are_an_error_of_the_row() -> None:
    for row in ({"prompt": "门", "提示词": "窗"}, {"text": "门", "caption": "窗"}):
        with pytest.raises(Invalid, match="prompt is there twice") as found:
            Columns().read(row)
        assert not isinstance(found.value, WrongColumns)


@pytest.mark.parametrize(
    ("names", "named", "keep", "says"),
    [
        (
            ["红色的圆形"],
            {},
            None,
            "if '红色的圆形' is a prompt, use --no-header (columns",
        ),
        (["标题", "id"], {}, None, "as in --column prompt=标题 (columns)."),
        (["prompt", "提示词"], {}, None, "two columns mean prompt"),
        (["prompt", "id", "id"], {}, "all", "two columns mean id"),
        (["prompt"], {"seed": "种"}, None, "no column is called '种'; the columns are 'prompt'."),
        (["prompt", "id"], {}, ("ids",), "no column is called 'ids'; the columns are 'prompt', 'id'."),
    ],
)
def test_the_header_of_a_table_is_checked_at_once(
    names: list[str], named: Mapping[str, str], keep: Keep, says: str
) -> None:
    with pytest.raises(WrongColumns, match=re.escape(says)):
        Columns(named, keep).learn(tuple(names))


def test_an_index_that_the_file_names_is_left_out_unless_it_is_to_be_kept() -> None:
    row = {"prompt": "门", "id": 7}
    for keep, kept in ((None, {}), ("all", {"id": 7}), (("id",), {"id": 7})):
        found = Columns(keep=keep)  # type: ignore[arg-type]
        found.learn(("prompt", "id"), index=("id",))
        assert found.read(row) == ({"prompt": "门"}, kept)


def test_it_remembers_what_each_column_was_taken_for() -> None:
    found = Columns(keep=("id", "text"))
    found.read({"": 0, "caption": "门", "text": "t", "id": 7, "url": "u"})
    found.read({"caption": "窗", "seed": 1})
    taken = [(use.column, use.field, use.is_kept, use.is_index) for use in found.uses.values()]
    assert taken == [
        ("", None, False, True),
        ("caption", "prompt", False, False),
        ("text", None, True, False),
        ("id", None, True, False),
        ("url", None, False, False),
        ("seed", "seed", False, False),
    ]


def test_lines_with_ever_new_names_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_MEANINGS", 5)
    monkeypatch.setattr(columns, "MAX_USES", 7)
    monkeypatch.setattr(columns, "MAX_REMEMBERED", 999)
    found = Columns(keep=())
    for number in range(50):
        found.read({"prompt": "门", f"x{number}": 1})
        found.read({"prompt": "门", f"{number}" + "x" * 1000: 1})
    assert len(found._meanings) <= 5
    assert all(len("".join(names)) < 1000 for names in found._meanings)
    assert len(found.uses) == 7


def test_names_ignore_case_spaces_and_hyphens() -> None:
    assert [field_of(name) for name in ("Negative Prompt", " SEED ", "CFG scale", "提示词", "stpes")] == [
        "negative_prompt",
        "seed",
        "guidance",
        "prompt",
        "stpes",
    ]


# Kept values


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('a红\\"\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(json_values, max_size=6))
@settings(deadline=None)
def test_a_column_has_one_kind_that_loses_nothing(values: list[Any]) -> None:
    kinds: Mapping[str, str | None] = {}
    for value in values:
        kinds = with_kinds(kinds, {"x": value})
    kind = kinds.get("x")
    assert kind is None or kind in TYPES
    for value in values:
        cell: Any = cell_value(kind, value)
        if value is None or isinstance(value, str):
            assert cell == value
        elif kind == "string":
            assert json.loads(cell) == value
        else:
            assert cell == value
            assert type(cell) is {"bool": bool, "small": int, "int64": int, "float64": float}[str(kind)]
            assert kind == "float64" or cell in range(-(2**63), 2**63)


@given(json_values, json_values, json_values)
@settings(deadline=None)
def test_kinds_do_not_depend_on_the_order_of_rows(first: Any, second: Any, third: Any) -> None:
    a, b, c = map(kind_of, (first, second, third))
    assert wider(a, wider(b, c)) == wider(wider(a, b), c)
    assert wider(a, b) == wider(b, a)


def test_whole_numbers_beside_floats_stay_exact() -> None:
    assert wider(kind_of(EXACT), kind_of(0.5)) == "float64"
    assert wider(kind_of(EXACT + 1), kind_of(0.5)) == "string"


def test_parts_of_a_file_have_the_columns_of_both_in_their_order() -> None:
    assert list(join_kinds({"b": "bool", "a": None}, {"c": "string", "a": "small"}).items()) == [
        ("b", "bool"),
        ("a", "small"),
        ("c", "string"),
    ]
    for name in ("x" * 101, "a\0", "\ud800"):
        with pytest.raises(Invalid, match="cannot be kept"):
            with_kinds({}, {name: None})
    with pytest.raises(Invalid, match="more than 100 columns"):
        with_kinds({}, dict.fromkeys(map(str, range(MAX_KEPT_COLUMNS + 1))))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("红" * MAX_KEPT_BYTES, "take 24,008 bytes as JSON; at most 8,000"),
        ("a\0b", "U+0000"),
        ("\ud800", "half of a surrogate pair"),
        ([float("inf")], "NaN"),
        (json.loads("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)), "more than 20 lists"),
    ],
)
def test_what_cannot_be_stored_is_an_error_of_the_row(value: Any, says: str) -> None:
    with pytest.raises(Invalid, match=re.escape(says)):
        kept_json({"x": value})


def test_a_backslash_before_u0000_is_text() -> None:
    assert json.loads(kept_json({"x": "\\u0000"})) == {"x": "\\u0000"}


def test_an_origin_has_what_there_is() -> None:
    assert origin_json(None) == ""
    assert origin_json(7) == '{"row":7}'
    assert json.loads(origin_json(7, kept_json({"id": "a", "no": None}), '{"v":1}')) == {
        "row": 7,
        "meta": {"id": "a"},
        "template_vars": {"v": 1},
    }
    assert kept_json({"id": None}) == ""
