"""The one table of conversions: what a cell of CSV, JSON, Parquet or XLSX is in each field."""

from typing import Any

import pytest

from common.errors import Invalid
from common.prompt_files.conversions import value_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "cells", "value"),
    [
        ("steps", ["4", 4, 4.0, " 4 ", "4.0", "4e0"], 4),
        ("steps", ["100", 1e2, "1e2"], 100),
        ("seed", ["18446744073709551615", 18446744073709551615], 2**64 - 1),
        ("seed", [None, NAN, "", " ", "NaN"], None),
        ("seed", ["1,234"], "1,234"),
        ("seed", [7.5, "7.5"], 7.5),
        ("width", [True], True),
        ("guidance", ["7", 7, 7.0, "7.0"], 7.0),
        ("guidance", ["much"], "much"),
        ("guidance", [None, NAN, "nan", ""], None),
        ("seeds", ["[1, 2]", [1, 2], [1.0, "2"]], [1, 2]),
        ("lora", ["ink"], "ink"),
        ("prompt", ["30", 30, 30.0, " 30\n"], "30"),
        ("prompt", ["1.5", 1.5], "1.5"),
        ("prompt", ["", "  "], ""),
        ("prompt", [None, NAN], None),
        ("prompt", ["nan"], "nan"),
        ("negative_prompt", [""], ""),
        ("model", ["15", 15, 15.0], "15"),
        ("model", ["", None], None),
    ],
)
def test_a_cell_has_the_same_value_in_every_format(field: str, cells: list[Any], value: Any) -> None:
    found = [value_of(field, cell) for cell in cells]
    assert found == [value] * len(cells)
    assert {type(one) for one in found} == {type(value)}


@pytest.mark.parametrize("cell", [2.0**53, 1.8446744073709552e19, "1.8e+19", "9007199254740993.0"])
def test_a_seed_that_lost_digits_in_a_float_is_refused(cell: Any) -> None:
    with pytest.raises(Invalid, match="a spreadsheet has rounded it"):
        value_of("seed", cell)


def test_text_of_any_depth_stays_text() -> None:
    nested = "[" * 100_000
    assert value_of("lora", nested) == nested
