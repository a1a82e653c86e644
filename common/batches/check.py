"""The check of a batch's lines: their recipes, their errors, and warnings about their prompts. Pure.

Whether a line is wrong does not depend on its position; its seeds do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from common.batches import sentence
from common.batches.plan import PlannedJob, Planner
from common.batches.templates import plan_line
from common.catalog.catalog import Catalog, Model
from common.errors import Invalid, RefusedByPolicy
from common.policy.policy import NO_POLICY, Policy
from common.prompt_files.columns import Columns, UnknownColumns, WrongColumns
from common.prompt_files.lines import Line, at_line
from common.recipes import prompt_templates, token_counter
from common.recipes.judged import own_negative_prompt
from common.recipes.origin import Kinds, join_kinds, kept_json, with_kinds
from common.recipes.recipe import Recipe
from common.sentences import Sentence

MAX_SHOWN = 20  # errors in one sentence; the other lines have the same ones
MAX_REASON = 500  # characters

PlannedLines = dict[int, list[PlannedJob]]  # of each line, by its number: of each of its prompts all variants


@dataclass(frozen=True)
class CheckedLines:
    """The jobs, errors and warnings of some lines, by the numbers of the lines. `kinds`: of what they keep."""

    planned: PlannedLines
    errors: Mapping[int, str]
    warnings: Mapping[int, str] = field(default_factory=dict)
    kinds: Kinds = field(default_factory=dict)

    @property
    def jobs(self) -> Iterable[PlannedJob]:
        """The jobs of all lines, in order."""
        return chain.from_iterable(self.planned.values())

    def count_prompts(self, variants: int) -> int:
        """How many positions they take. `variants`: of each prompt."""
        return sum(map(len, self.planned.values())) // variants

    @property
    def first_lines(self) -> dict[str, int]:
        """For each model, the first line that asks for it."""
        found = dict[str, int]()
        for number, variants in self.planned.items():
            for job in variants:
                found.setdefault(job.template.recipe.model, number)
        return found


def plan_lines(lines: Iterable[Line], variants: Sequence[Planner], position: int, columns: Columns) -> CheckedLines:
    """The jobs of the lines. The prompts of lines without errors have consecutive positions, from this one on.

    Raises WrongColumns for what is wrong with the whole file.
    """
    planned, errors, unknown = PlannedLines(), dict[int, str](), list[str]()
    kinds: Kinds = {}
    for line in lines:
        try:
            fields, kept = columns.read(line.cells())
            text = kept_json(kept)
            jobs = plan_line(variants, fields, position, text)
            kinds = with_kinds(kinds, kept) if kept else kinds
        except UnknownColumns as error:
            unknown += error.names
        except WrongColumns:
            raise
        except Invalid as error:
            errors[line.number] = _reason(error)
        else:
            planned[line.number] = [job._replace(row=line.number, kept=text) for job in jobs]
            position += len(jobs) // len(variants)
    if unknown:
        raise UnknownColumns(unknown)
    return CheckedLines(planned, errors, kinds=kinds)


def check_lines(
    lines: Iterable[Line],
    variants: Sequence[Planner],
    position: int,
    columns: Columns,
    catalog: Catalog,
    policy: Policy = NO_POLICY,
) -> CheckedLines:
    """The same, and the policy judges the prompts, and their tokens are counted. A line has at most one warning."""
    found = plan_lines(lines, variants, position, columns)
    errors, warnings = dict(found.errors), dict[int, str]()
    errors.update((number, _reason(refusal)) for number, refusal in _refused(found.planned, catalog, policy))
    for number, recipe, model in _suspects(found.planned, catalog):
        try:
            token_counter.check(recipe, model)
        except Invalid as error:
            errors.setdefault(number, _reason(error))
            continue
        for warning in token_counter.warnings(recipe, model)[:1]:
            warnings.setdefault(number, warning)
    is_of_template = variants[0].plan_of_batch.template is not None
    warnings |= _unread_syntax(found.planned, is_of_template=is_of_template)
    right = {number: jobs for number, jobs in found.planned.items() if number not in errors}
    in_order = {number: warnings[number] for number in sorted(warnings) if number in right}
    return CheckedLines(right, errors, in_order, found.kinds)


def join(parts: Iterable[CheckedLines]) -> CheckedLines:
    """Consecutive lines that were checked one part after the other."""
    planned, errors, warnings = PlannedLines(), dict[int, str](), dict[int, str]()
    kinds: Kinds = {}
    for part in parts:
        planned.update(part.planned)
        errors.update(part.errors)
        warnings.update(part.warnings)
        kinds = join_kinds(kinds, part.kinds)
    return CheckedLines(planned, errors, warnings, kinds)


def list_errors(errors: Mapping[int, str], format: str) -> Sentence:
    """The first errors of a file of this format, each with its line."""
    found = [at_line(format, number, errors[number]) for number in sorted(errors)]
    lines = " ".join(found[:MAX_SHOWN])
    if len(found) > MAX_SHOWN:
        return sentence("wrong_lines_and_more", lines=lines, more=len(found) - MAX_SHOWN)
    return sentence("wrong_lines", lines=lines)


def _reason(error: Invalid) -> str:
    """The message, cut short and without characters that cannot be stored: it may quote the line."""
    stored = error.message[:MAX_REASON].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    return error.message if stored == error.message else stored


def _refused(planned: PlannedLines, catalog: Catalog, policy: Policy) -> Iterator[tuple[int, RefusedByPolicy]]:
    """The lines that the policy refuses. A negative prompt is that of many lines, so it is judged once."""
    if not policy.rules:
        return
    rules: dict[str, str | None] = {}
    for number, variants in planned.items():
        prompts = dict.fromkeys(job.prompt for job in variants)
        if rule := next(filter(None, (policy.refusing_rule("prompt", prompt) for prompt in prompts)), None):
            yield number, policy.refusal("prompt", rule)
            continue
        for negative in {own_negative_prompt(job.template.recipe, catalog) for job in variants}:
            if negative not in rules:
                rules[negative] = policy.refusing_rule("negative_prompt", negative)
            if found := rules[negative]:
                yield number, policy.refusal("negative_prompt", found)


def _unread_syntax(planned: PlannedLines, *, is_of_template: bool) -> Iterator[tuple[int, str]]:
    """The lines with a prompt that looks like more than text."""
    for number, jobs in planned.items():
        for prompt in dict.fromkeys(job.prompt for job in jobs):
            if found := prompt_templates.warnings(prompt, is_of_template=is_of_template):
                yield number, found[0]
                break


def _suspects(planned: PlannedLines, catalog: Catalog) -> Iterator[tuple[int, Recipe, Model]]:
    """The recipes whose prompts may have an error or a warning, with their lines; one for each prompt and model."""
    groups: dict[tuple[str, str], dict[tuple[int, str], PlannedJob]] = {}
    for number, variants in planned.items():
        for job in variants:
            recipe = job.template.recipe
            groups.setdefault((recipe.model, recipe.negative_prompt), {})[number, job.prompt] = job
    for (name, negative_prompt), jobs in groups.items():
        model, places = catalog.get(name), list(jobs)
        for index in token_counter.find_suspects([prompt for _, prompt in places], negative_prompt, model):
            yield places[index][0], jobs[places[index]].recipe, model
