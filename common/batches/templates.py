"""The lines of a batch whose prompts may be templates: the jobs of a line, and how many there are. Pure.

A template has several prompts, at consecutive positions. They are made together, in one chunk, so a line may make only
so many; their number is known before the first one is made.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from common.batches import sentence
from common.batches.plan import Plan, PlannedJob, Planner, to_json
from common.errors import FieldError, Invalid
from common.prompt_files.columns import Columns
from common.recipes.prompt_templates import TemplateError, TemplatePrompt, Templates, count_words

MAX_LINE_IMAGES = 16_384  # as many as one prompt can have in a matrix
MAX_LINE_CHARACTERS = 8_000_000  # of its prompts, variables, other texts and kept values, times the variants


def plan_line(
    variants: Sequence[Planner], fields: Mapping[str, Any], position: int, kept: str = ""
) -> list[PlannedJob]:
    """The jobs of a line, in order: of each of its prompts all variants. Its prompts have consecutive positions.

    `kept`: what the line keeps of its other columns, in JSON. Raises Invalid.
    """
    plan, text = variants[0].plan_of_batch, fields.get("prompt")
    if plan.template is None or not isinstance(text, str):
        return [variant.plan(fields, position) for variant in variants]
    jobs = list[PlannedJob]()
    for at, (prompt, variables) in enumerate(_prompts(plan, plan.template, fields, len(variants), kept), position):
        alone, chosen = {**fields, "prompt": prompt}, to_json(variables) if variables else ""
        jobs += [variant.plan(alone, at)._replace(template_vars=chosen) for variant in variants]
    return jobs


def count_prompts(plan: Plan, rows: Collection[str | Mapping[str, Any]]) -> int:
    """How many prompts these rows have. A wrong one counts as one: it ends the batch, or is left out."""
    if plan.template is None:
        return len(rows)
    columns = plan.columns_of_file()
    return sum(_count(plan.template, columns, row) for row in rows)


def _count(templates: Templates, columns: Columns, row: str | Mapping[str, Any]) -> int:
    try:
        fields = {"prompt": row} if isinstance(row, str) else columns.read(row)[0]
        count = templates.count(templates.parse(fields["prompt"]))
    except (Invalid, KeyError, TemplateError, TypeError):
        return 1
    return count if count <= MAX_LINE_IMAGES else 1


def _prompts(
    plan: Plan, templates: Templates, fields: Mapping[str, Any], variants: int, kept: str
) -> Iterable[TemplatePrompt]:
    """The prompts of a line. Raises Invalid for a template that is wrong or makes too many."""
    text: str = fields["prompt"]
    try:
        template = templates.parse(text)
    except TemplateError as error:
        raise Invalid.of([FieldError("prompt", error.reason)]) from None
    count, jobs = templates.count(template), templates.count(template) * variants
    if (images := jobs * _images(plan, fields)) > MAX_LINE_IMAGES:
        too_many = sentence(
            "template_too_many", count=count_words(count), images=count_words(images), most=MAX_LINE_IMAGES
        )
        raise Invalid.of([FieldError("prompt", too_many)])
    others = len(kept) + sum(len(value) for value in fields.values() if isinstance(value, str) and value is not text)
    if jobs * (size := template.size + others) > MAX_LINE_CHARACTERS:
        too_long = sentence("template_too_long", count=count, size=size, most=MAX_LINE_CHARACTERS)
        raise Invalid.of([FieldError("prompt", too_long)])
    return templates.prompts(template, f"{plan.seed} {_row_text(fields, kept)}")


def _row_text(fields: Mapping[str, Any], kept: str) -> str:
    """What samples of a row follow from, beside the batch's seed: its values, as any format of file has them.

    Not its number, which differs: a table has a header. A number may be text in one format and a float in another.
    """
    values = {**json.loads(kept or "{}"), **fields}
    return to_json({name: _plain(values[name]) for name in sorted(values)})


def _plain(value: Any) -> str:
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value).strip()


def _images(plan: Plan, fields: Mapping[str, Any]) -> int:
    """How many of each of its prompts, if what the line says of that is right."""
    seeds, count = fields.get("seeds"), fields.get("count")
    if isinstance(seeds, list):
        return max(1, len(seeds))
    return max(1, count) if isinstance(count, int) else plan.images_per_prompt
