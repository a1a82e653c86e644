"""The matrix of a batch: the variants of each of its prompts. Lists multiply, `zip` pairs lists. Pure values.

    {"guidance": [3, 7.5], "zip": [{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}]}

has two axes (model with scheduler, and guidance) and so four variants. The axes are in the order of a recipe's fields,
and the last one changes fastest: jsonb does not keep the order of keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Any

from common.batches import sentence
from common.errors import FieldError, Invalid
from common.recipes.recipe import Draft

OF_EACH_PROMPT = frozenset({"prompt", "count", "seed", "seeds"})  # fields that a matrix cannot have
FIELDS = tuple(name for name in Draft.model_fields if name not in OF_EACH_PROMPT)
MAX_VARIANTS = 256  # of one prompt: they are expanded in one chunk

Variant = dict[str, Any]
Group = tuple[str, dict[str, Any]]  # its path in the request, and the lists of one axis


@dataclass(frozen=True)
class Axis:
    """Fields that change together, and their values: each tuple has one for each field."""

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def variants(matrix: Mapping[str, Any]) -> list[Variant]:
    """The fields that a matrix sets, for each combination. An empty matrix has one variant, which sets nothing."""
    found = axes(matrix)
    fields = [field for axis in found for field in axis.fields]
    combinations = product(*(axis.values for axis in found))
    return [dict(zip(fields, chain(*values), strict=True)) for values in combinations]


def axes(matrix: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of a matrix. Raises Invalid if its shape is wrong; does not check the values."""
    groups = list(_groups(matrix))
    if errors := list(_field_errors(groups)) or list(_list_errors(groups)):
        raise Invalid.of(errors)
    found = sorted((_axis(lists) for _, lists in groups), key=lambda axis: FIELDS.index(axis.fields[0]))
    if (count := prod(len(axis.values) for axis in found)) > MAX_VARIANTS:
        raise Invalid.of([FieldError("matrix", sentence("too_many_variants", count=count, most=MAX_VARIANTS))])
    return tuple(found)


def _groups(matrix: Mapping[str, Any]) -> Iterator[Group]:
    zipped = matrix.get("zip", [])
    if not isinstance(zipped, list) or not all(isinstance(lists, dict) and lists for lists in zipped):
        example = '[{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}]'
        raise Invalid.of([FieldError("matrix.zip", sentence("zip_is_no_list", example=example))])
    yield from (("matrix", {field: values}) for field, values in matrix.items() if field != "zip")
    yield from ((f"matrix.zip.{position}", lists) for position, lists in enumerate(zipped))


def _field_errors(groups: Sequence[Group]) -> Iterator[FieldError]:
    seen = set[str]()
    for path, lists in groups:
        for field, values in lists.items():
            if field in OF_EACH_PROMPT:
                yield FieldError(f"{path}.{field}", sentence("set_by_prompt"))
            elif field not in FIELDS:
                yield FieldError(path, sentence("unknown_field", field=field, fields=", ".join(FIELDS)))
            elif field in seen:
                yield FieldError(f"{path}.{field}", sentence("field_twice"))
            elif not isinstance(values, list) or not values:
                yield FieldError(f"{path}.{field}", sentence("values_are_no_list"))
            seen.add(field)


def _list_errors(groups: Sequence[Group]) -> Iterator[FieldError]:
    for path, lists in groups:
        lengths = {field: len(values) for field, values in lists.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{field} has {length}" for field, length in lengths.items())
            yield FieldError(path, sentence("zip_lengths_differ", lengths=listed))
        elif len({repr(values) for values in zip(*lists.values(), strict=True)}) < min(lengths.values()):
            yield FieldError(path if len(lists) > 1 else f"{path}.{next(iter(lists))}", sentence("value_twice"))


def _axis(lists: Mapping[str, list[Any]]) -> Axis:
    fields = tuple(sorted(lists, key=FIELDS.index))
    return Axis(fields, tuple(zip(*(lists[field] for field in fields), strict=True)))
