"""The matrix of a batch: what each of its prompts is drawn with. Lists multiply, `zip` pairs lists. Pure values.

    {"guidance": [3, 7.5], "zip": [{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}]}

has two axes (model with scheduler, and guidance) and so four variants. Axes come in the order of a recipe's fields,
the last one changing fastest: the order of a JSON object does not survive the database.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Any

from common.errors import FieldError, Invalid
from common.recipes.recipe import Draft

OF_EACH_PROMPT = frozenset({"prompt", "count", "seed", "seeds"})  # what of a recipe is not for all of a batch
FIELDS = tuple(name for name in Draft.model_fields if name not in OF_EACH_PROMPT)
MAX_VARIANTS = 256  # of one prompt, which is never cut in two while a batch is expanded

Variant = dict[str, Any]
Group = tuple[str, dict[str, Any]]  # where it stands, and the lists that make one axis


@dataclass(frozen=True)
class Axis:
    """Fields that change together, and what they are in turn: a value for each of them."""

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def variants(matrix: Mapping[str, Any]) -> list[Variant]:
    """What a matrix sets, for each combination. Of an empty one: a single variant, which sets nothing."""
    found = axes(matrix)
    fields = [field for axis in found for field in axis.fields]
    combinations = product(*(axis.values for axis in found))
    return [dict(zip(fields, chain(*values), strict=True)) for values in combinations]


def axes(matrix: Mapping[str, Any]) -> tuple[Axis, ...]:
    """Raises Invalid for what is wrong with its shape. What its values are worth, a model has to say."""
    groups = list(_groups(matrix))
    if wrong := list(_wrong_fields(groups)) or list(_wrong_lists(groups)):
        raise Invalid.of(wrong)
    found = sorted((_axis(lists) for _, lists in groups), key=lambda axis: FIELDS.index(axis.fields[0]))
    if (count := prod(len(axis.values) for axis in found)) > MAX_VARIANTS:
        raise Invalid.of([FieldError("matrix", f"makes {count:,} variants of each prompt; at most {MAX_VARIANTS}")])
    return tuple(found)


def _groups(matrix: Mapping[str, Any]) -> Iterator[Group]:
    zipped = matrix.get("zip", [])
    if not isinstance(zipped, list) or not all(isinstance(lists, dict) and lists for lists in zipped):
        example = '[{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}]'
        raise Invalid.of([FieldError("matrix.zip", f"must be a list such as {example}")])
    yield from (("matrix", {field: values}) for field, values in matrix.items() if field != "zip")
    yield from ((f"matrix.zip.{place}", lists) for place, lists in enumerate(zipped))


def _wrong_fields(groups: Sequence[Group]) -> Iterator[FieldError]:
    seen = set[str]()
    for where, lists in groups:
        for field, values in lists.items():
            if field in OF_EACH_PROMPT:
                yield FieldError(f"{where}.{field}", "is for each prompt to say")
            elif field not in FIELDS:
                yield FieldError(where, f"has {field!a}, which is none of {', '.join(FIELDS)}")
            elif field in seen:
                yield FieldError(f"{where}.{field}", "is in the matrix twice")
            elif not isinstance(values, list) or not values:
                yield FieldError(f"{where}.{field}", "must be a list of one value or more")
            seen.add(field)


def _wrong_lists(groups: Sequence[Group]) -> Iterator[FieldError]:
    for where, lists in groups:
        lengths = {field: len(values) for field, values in lists.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{field} has {length}" for field, length in lengths.items())
            yield FieldError(where, f"pairs lists that are not equally long: {said}")
        elif len({repr(values) for values in zip(*lists.values(), strict=True)}) < min(lengths.values()):
            yield FieldError(where if len(lists) > 1 else f"{where}.{next(iter(lists))}", "says the same twice")


def _axis(lists: Mapping[str, list[Any]]) -> Axis:
    fields = tuple(sorted(lists, key=FIELDS.index))
    return Axis(fields, tuple(zip(*(lists[field] for field in fields), strict=True)))
