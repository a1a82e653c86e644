"""The one table of conversions: from a cell of any format, text or a JSON value, to the value of a field. Pure.

So the same table gives the same recipes as CSV, TSV, JSON Lines, Parquet and XLSX. What is exactly a whole number is
one, as `"4"`, `4.0` and `1e2` are. A cell that is no value of its field stays as it is: the checks of the recipe refuse
it. Knows no names of columns.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from common.errors import Invalid
from common.prompt_files import sentence

EXACT = 2**53  # from here on a float is not one whole number but several
NUMBER = re.compile(r"[+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,3})?")
DIGITS = re.compile(r"[+-]?\d{1,40}")
NOTHING = ("", "nan")  # in a column of numbers or lists


def value_of(field: str, cell: Any) -> Any:
    """The value of a cell in the column of this field; None where it says nothing: null, NaN, an empty cell of a field
    that is no text of its own.

    Raises Invalid for a whole number that has lost digits in a float.
    """
    if cell is None or cell != cell:
        return None
    if field not in CONVERT:
        return cell
    if isinstance(cell, str):
        cell = cell.strip()
        if field not in TEXTS and cell.casefold() in NOTHING:
            return None
    return CONVERT[field](field, cell)


def _text(field: str, cell: Any) -> Any:
    """A number in a column of text is the number's text: spreadsheets make one of a prompt such as 1984."""
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < EXACT else str(cell)
    return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell


def _name(field: str, cell: Any) -> Any:
    return _text(field, cell) or None


def _whole(field: str, cell: Any) -> Any:
    if isinstance(cell, str):
        if DIGITS.fullmatch(cell):
            return int(cell)
        if not NUMBER.fullmatch(cell):
            return cell
        cell = float(cell)
    if not isinstance(cell, float) or not cell.is_integer():
        return cell
    if abs(cell) >= EXACT:
        raise Invalid(sentence("number_inexact", field=field, value=f"{cell:g}"))
    return int(cell)


def _float(field: str, cell: Any) -> Any:
    if isinstance(cell, str):
        return float(cell) if NUMBER.fullmatch(cell) else cell
    return float(cell) if isinstance(cell, int) and not isinstance(cell, bool) and abs(cell) < EXACT else cell


def _list(field: str, cell: Any) -> Any:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return [_whole(field, one) for one in cell] if field == "seeds" and isinstance(cell, list) else cell


PROMPTS = ("prompt", "negative_prompt")
NAMES = ("model", "scheduler", "mode", "source", "mask", "style", "format")
TEXTS = (*PROMPTS, *NAMES)
CONVERT: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(PROMPTS, _text),
    **dict.fromkeys(NAMES, _name),
    **dict.fromkeys(("width", "height", "steps", "count", "seed"), _whole),
    **dict.fromkeys(("guidance", "strength"), _float),
    **dict.fromkeys(("seeds", "lora"), _list),
}
