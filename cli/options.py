"""Lists of values as they are given on the command line: `20,50`, and those of a matrix, `steps=20,50`."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from cli.shell import Failure

Lists = Mapping[str, list[Any]]


def value(text: str) -> int | float | str:
    """A number where it looks like one."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d*\.\d+", text) else text


class ValuesType(click.ParamType):
    """Values with commas between them."""

    name = "A,B"

    def __init__(self, parse: Callable[[str], Any] = value) -> None:
        self._parse = parse

    def convert(self, given: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        found = [one.strip() for one in str(given).split(",")]
        if not all(found):
            self.fail(f"{given} has a place without a value; write 20,50.", param, ctx)
        return [self._parse(one) for one in found]


class ListsType(click.ParamType):
    """A field and its values; or several, which change together."""

    name = "FIELD=A,B"

    def convert(self, given: Any, param: click.Parameter | None, ctx: click.Context | None) -> Lists:
        names, _, values = str(given).partition("=")
        fields = [name.strip() for name in names.split(":")]
        rows = [[one.strip() for one in row.split(":")] for row in values.split(",")]
        if not all(fields) or any(len(row) != len(fields) or not all(row) for row in rows):
            self.fail(f"{given} is none; write steps=20,50 or model:scheduler=zh-v0:lms,zh-v1:pndm.", param, ctx)
        return {field: [value(row[at]) for row in rows] for at, field in enumerate(fields)}


def matrix_of(given: Iterable[Lists]) -> dict[str, Any]:
    """The matrix of a batch that these lists make."""
    matrix: dict[str, Any] = {}
    for lists in given:
        if len(lists) > 1:
            matrix.setdefault("zip", []).append(dict(lists))
        elif twice := matrix.keys() & lists.keys():
            raise Failure(f"--matrix says {', '.join(twice)} twice: put all values in one list.", 2)
        else:
            matrix.update(lists)
    return matrix
