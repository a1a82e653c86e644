"""Checking: what the lines of a file of prompts become, which of them are wrong, and what to warn of. Pure, but slow.

Whether a line is wrong does not depend on its place, only its seeds do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from common.batches.plan import PlannedJob, Planner
from common.catalog.catalog import Catalog, Model
from common.errors import Invalid
from common.prompt_files.lines import Line, at_line
from common.recipes import token_counter
from common.recipes.recipe import Recipe

MAX_SHOWN = 20  # wrong prompts that are named; the others would be wrong for the same reasons
MAX_REASON = 500  # characters

PlannedLines = dict[int, list[PlannedJob]]  # by the number of the line, its variants


@dataclass(frozen=True)
class CheckedLines:
    """Some lines, by their numbers."""

    planned: PlannedLines
    wrong: Mapping[int, str]
    warnings: Mapping[int, str] = field(default_factory=dict)

    @property
    def in_turn(self) -> Iterable[PlannedJob]:
        return chain.from_iterable(self.planned.values())

    @property
    def first_lines(self) -> dict[str, int]:
        """The first line that asks for a model, for each of them."""
        found = dict[str, int]()
        for number, variants in self.planned.items():
            for one in variants:
                found.setdefault(one.base.recipe.model, number)
        return found


def plan_lines(lines: Iterable[Line], variants: Sequence[Planner], place: int) -> CheckedLines:
    """Their recipes. Those that are right have places one after the other, from this one on."""
    found, wrong = PlannedLines(), dict[int, str]()
    for line in lines:
        try:
            fields = line.fields()
            found[line.number] = [variant.planned(fields, place + len(found)) for variant in variants]
        except Invalid as error:
            wrong[line.number] = _reason(error)
    return CheckedLines(found, wrong)


def check_lines(lines: Iterable[Line], variants: Sequence[Planner], place: int, catalog: Catalog) -> CheckedLines:
    """The same, with their tokens counted, and what their pictures may not show."""
    found = plan_lines(lines, variants, place)
    wrong, warnings = dict(found.wrong), dict[int, str]()
    for number, recipe, model in _suspects(found.planned, catalog):
        try:
            token_counter.check(recipe, model)
        except Invalid as error:
            wrong.setdefault(number, _reason(error))
        for warning in token_counter.warnings(recipe, model)[:1]:
            warnings.setdefault(number, warning)
    right = {number: ones for number, ones in found.planned.items() if number not in wrong}
    return CheckedLines(right, wrong, {number: warnings[number] for number in sorted(warnings) if number in right})


def list_errors(wrong: Mapping[int, str], format: str) -> str:
    """Names the first of them."""
    named = [at_line(format, number, wrong[number]) for number in sorted(wrong)]
    more = [f"{len(named) - MAX_SHOWN} more near them."] if len(named) > MAX_SHOWN else []
    return " ".join(named[:MAX_SHOWN] + more)


def _reason(error: Invalid) -> str:
    """Its message, short and of characters that can be stored: a line may say anything, and errors quote it."""
    return error.message[:MAX_REASON].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _suspects(planned: PlannedLines, catalog: Catalog) -> Iterator[tuple[int, Recipe, Model]]:
    """Those of whose prompts there is something to say, with their lines; a line once for each model."""
    alike: dict[tuple[str, str], dict[int, PlannedJob]] = {}
    for number, variants in planned.items():
        for one in variants:
            alike.setdefault((one.base.recipe.model, one.base.recipe.negative_prompt), {})[number] = one
    for (name, negative), ones in alike.items():
        model, numbers = catalog.get(name), list(ones)
        for place in token_counter.find_suspects([one.prompt for one in ones.values()], negative, model):
            yield numbers[place], ones[numbers[place]].recipe, model
