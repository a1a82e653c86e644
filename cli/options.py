"""The types of option values that Click does not have. Knows no command."""

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cli import sentence
from cli.errors import USAGE, Failure

FieldValues = Mapping[str, list[Any]]  # values of fields of a recipe; several fields change together


def parse_value(text: str) -> int | float | str:
    """An int or a float where the text is one."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d*\.\d+", text) else text


class ValueList(click.ParamType):
    """`20,50` → [20, 50]"""

    name = "A,B"

    def __init__(self, parse: Callable[[str], Any] = parse_value) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        found = [one.strip() for one in str(value).split(",")]
        if not all(found):
            self.fail(sentence("list_invalid", value=value), param, ctx)
        return [self._parse(one) for one in found]


class FieldValueList(click.ParamType):
    """`steps=20,50` → {"steps": [20, 50]}; `model:steps=a:20,b:50` → {"model": ["a", "b"], "steps": [20, 50]}"""

    name = "FIELD=A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> FieldValues:
        names, _, values = str(value).partition("=")
        fields = [name.strip() for name in names.split(":")]
        rows = [[one.strip() for one in row.split(":")] for row in values.split(",")]
        if not all(fields) or any(len(row) != len(fields) or not all(row) for row in rows):
            self.fail(sentence("matrix_invalid", value=value), param, ctx)
        return {field: [parse_value(row[at]) for row in rows] for at, field in enumerate(fields)}


def build_matrix(given: Iterable[FieldValues]) -> dict[str, Any]:
    """The matrix of a batch from all its --matrix options. Raises Failure for a field that is given twice."""
    matrix: dict[str, Any] = {}
    for values in given:
        if len(values) > 1:
            matrix.setdefault("zip", []).append(dict(values))
        elif twice := matrix.keys() & values.keys():
            raise Failure(sentence("matrix_field_twice", field=", ".join(twice)), USAGE)
        else:
            matrix.update(values)
    return matrix


class FieldColumn(click.ParamType):
    """`prompt=caption` → ("prompt", "caption")"""

    name = "FIELD=COLUMN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        field, _, column = str(value).partition("=")
        if not field.strip() or not column.strip():
            self.fail(sentence("column_invalid", value=value), param, ctx)
        return field.strip(), column.strip()


class KeptColumns(click.ParamType):
    """`id,category` → ["id", "category"]; `all` → "all"; an empty text → []"""

    name = "A,B|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str] | str:
        text = str(value).strip()
        return "all" if text == "all" else [one.strip() for one in text.split(",") if one.strip()]


class Size(click.ParamType):
    """`512x256` → (512, 256)"""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if not (sides := re.fullmatch(r"(\d{1,5})[x×*](\d{1,5})", str(value))):
            self.fail(sentence("size_invalid", value=value), param, ctx)
        return int(sides[1]), int(sides[2])


class ImageFile(click.ParamType):
    """The path of a local file, or the id of an upload or image of the farm."""

    name = "FILE|ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if Path(value).is_file():
            return Path(value)
        try:
            return str(uuid.UUID(value))
        except ValueError:
            self.fail(sentence("image_file_invalid", value=value), param, ctx)


class LoraWeight(click.ParamType):
    """`ink:0.8` → {"name": "ink", "weight": 0.8}; a weight of 1 where none is given."""

    name = "NAME[:WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        name, _, weight = str(value).rpartition(":") if ":" in str(value) else (str(value), "", "1")
        try:
            return {"name": name, "weight": float(weight)}
        except ValueError:
            self.fail(sentence("lora_weight_invalid", value=weight, name=name), param, ctx)


class StopRule(click.ParamType):
    """`20%/50` → {"percent": 20.0, "of_last": 50}: more than 20 % of the last 50 images."""

    name = "PERCENT/LAST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%?/(\d+)", str(value))
        if not found:
            self.fail(sentence("stop_rule_invalid", value=value), param, ctx)
        return {"percent": float(found[1]), "of_last": int(found[2])}


class Limit(click.ParamType):
    """`waiting_images=1000` → ("waiting_images", 1000); `waiting_images=` → ("waiting_images", None)"""

    name = "NAME=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        found = re.fullmatch(r"([a-z_]+)=([0-9]*)", str(value))
        if not found:
            self.fail(sentence("limit_invalid", value=value), param, ctx)
        return found[1], int(found[2]) if found[2] else None


class Expiry(click.ParamType):
    """`30d` or `12h` → that time from now, `2027-01-31` → the begin of that day in UTC; in the form of ISO 8601."""

    name = "30d|DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if span := re.fullmatch(r"([0-9]{1,6})([dh])", str(value)):
                unit = {"d": "days", "h": "hours"}[span[2]]
                return (datetime.now(UTC) + timedelta(**{unit: int(span[1])})).isoformat(timespec="seconds")
            moment = datetime.fromisoformat(str(value))
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        except (ValueError, OverflowError):
            self.fail(sentence("expiry_invalid", value=value), param, ctx)


class SplitShare(click.ParamType):
    """`test=0.1` → ("test", 0.1)"""

    name = "NAME=SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, _, share = str(value).partition("=")
        try:
            return name, float(share)
        except ValueError:
            self.fail(sentence("split_invalid", value=value), param, ctx)
