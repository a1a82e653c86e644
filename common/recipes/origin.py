"""Where a job comes from: the row of its file, the values of that row that are kept, the variables of its template.

Kept values are JSON. They become columns of datasets, whose kinds are found when the file is checked, so that all
shards of a dataset have the same. Pure; knows neither files nor tables.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from common.errors import Invalid
from common.recipes import sentence

MAX_KEPT_BYTES = 8000  # of a row, as JSON
MAX_KEPT_COLUMNS = 100
MAX_NAME = 100  # characters
MAX_DEPTH = 20  # of lists and objects in each other
EXACT = 2**53  # up to here a float is one whole number
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

Kinds = Mapping[str, str | None]  # of kept values, by name; None while none has a value

# name → type, a name of both Arrow's and the `datasets` library's. Text that is a list, an object or mixed is JSON.
TYPES = {"bool": "bool_", "small": "int64", "int64": "int64", "float64": "float64", "string": "string"}
WIDER = {("int64", "small"): "int64", ("float64", "small"): "float64"}

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def origin_json(row: int | None, kept: str = "", template_vars: str = "") -> str:
    """The origin of a job as JSON; `kept` and `template_vars` are JSON objects or empty. Empty if there is nothing."""
    parts = (("row", "" if row is None else str(row)), ("meta", kept), ("template_vars", template_vars))
    found = ",".join(f'"{name}":{text}' for name, text in parts if text)
    return f"{{{found}}}" if found else ""


def kept_json(kept: Mapping[str, Any]) -> str:
    """The kept values of a row as JSON, empty if all are null. Raises Invalid for what cannot be kept."""
    kept = {name: value for name, value in kept.items() if value is not None}
    if not kept:
        return ""
    for name, value in kept.items():
        if isinstance(value, dict | list) and _is_deeper(value, MAX_DEPTH):
            raise Invalid(sentence("kept_too_deep", column=name[:40], most=MAX_DEPTH))
    try:
        text = to_json(kept)
        size = len(text.encode())
    except ValueError:  # NaN in a list, or half of a surrogate pair
        raise Invalid(sentence("kept_unreadable")) from None
    if "\\u0000" in text and NUL.search(text):
        raise Invalid(sentence("kept_unreadable"))
    if size > MAX_KEPT_BYTES:
        raise Invalid(sentence("kept_too_long", bytes=size, most=MAX_KEPT_BYTES))
    return text


def _is_deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (most == 0 or any(_is_deeper(one, most - 1) for one in inner))


def with_kinds(kinds: Kinds, kept: Mapping[str, Any]) -> Kinds:
    """The kinds with those of another row; unchanged where it brings nothing new. Raises Invalid for too many names."""
    changed = {
        name: kind
        for name, value in kept.items()
        if (kind := wider(kinds.get(name), kind_of(value))) != kinds.get(name, "")
    }
    return join_kinds(kinds, changed) if changed else kinds


def join_kinds(first: Kinds, second: Kinds) -> Kinds:
    """The kinds of all rows of two parts of a file, or of two batches. Raises Invalid for too many names."""
    found = {**first, **{name: wider(first.get(name), kind) for name, kind in second.items()}}
    if wrong := next((name for name in second if name not in first and not _is_name(name)), None):
        raise Invalid(sentence("kept_name_wrong", column=wrong[:40], most=MAX_NAME))
    if len(found) > MAX_KEPT_COLUMNS:
        raise Invalid(sentence("kept_too_many", most=MAX_KEPT_COLUMNS))
    return found


def _is_name(name: str) -> bool:
    """Whether a column can have this name: not half of a surrogate pair, for instance."""
    return len(name) <= MAX_NAME and "\0" not in name and name.encode("utf-8", "replace").decode() == name


def kind_of(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "small" if abs(value) <= EXACT else "int64" if -(2**63) <= value < 2**63 else "string"
    return "float64" if isinstance(value, float) else "string"


def wider(first: str | None, second: str | None) -> str | None:
    """The kind that takes the values of both and loses nothing."""
    if first is None or second is None or first == second:
        return first or second
    return WIDER.get((min(first, second), max(first, second)), "string")


def cell_value(kind: str | None, value: Any) -> Any:
    """A kept value in a dataset. A list or an object is text: libraries load no column whose values differ in shape."""
    if value is None:
        return None
    if kind == "float64":
        return float(value)
    return value if kind in ("bool", "small", "int64") or isinstance(value, str) else to_json(value)
