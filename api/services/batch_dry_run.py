"""Dry runs of batches: what a batch would become, without storing anything.

A file may have a hundred million lines. A dry run reads for a few seconds at most, reports how much it has read, and
extrapolates from that to the whole file. A tenant has one at a time.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api import sentence
from api.deps import AppState
from api.queries.batches import SkippedLine
from api.queries.fleet import Fleet, read_fleet
from api.schemas import RECIPE, Recipe, example
from api.services.batch_request import BatchRequest
from api.services.batches import INLINE, as_lines, plan_of
from api.services.jobs import image_finder
from common import uploads
from common.accounts.keys import Caller
from common.batches import check
from common.batches.check import CheckedLines
from common.batches.plan import PlannedJob, Planner, planners
from common.catalog.catalog import Catalog
from common.db import transaction
from common.errors import Invalid, NotFound, Unavailable
from common.policy.policy import Policy
from common.prompt_files.columns import Columns, Use
from common.prompt_files.formats import shown_format
from common.prompt_files.lines import Step, at_line, lines, steps
from common.prompt_files.reader import PromptFile, open_prompts
from common.uploads import Upload

MAX_PROMPTS = 20_000
MAX_S = 3.0
START_S = 5.0  # for a Parquet file that older code has not converted
STEP_JOBS = 500  # checked together
SHOWN_RECIPES, SHOWN_BAD, SHOWN_WARNINGS = 5, 20, 20
RECENT_LEASES = 500  # whose images give the average size

ImageKind = tuple[str, int, int, str]  # model, width, height, format


class BatchEstimate(BaseModel):
    """On the workers that are up; null while it is unknown."""

    gpu_seconds: float | None = Field(description="In pipeline calls, of all workers together.")
    seconds: float | None = Field(description="Until the batch ends, if the workers render nothing else.")
    bytes: int | None = Field(
        description="Of the pictures, if they are as large as recent ones of the same model, size and format."
    )


class ColumnUse(BaseModel):
    """What a column of the file, or a key of JSON Lines, was taken for. One that is neither is left out."""

    column: str
    field: str | None = Field(description="The field of a recipe that it means.")
    kept: bool = Field(description="Whether its values go with the jobs into datasets.")
    note: str | None = Field(description="Why it is left out.")


class BatchDryRun(BaseModel):
    """What a batch would become."""

    model_config = example(
        {
            "format": "csv",
            "encoding": "gb18030",
            "prompts": 1_000_000,
            "checked_prompts": 20_000,
            "distinct": 19_999,
            "is_estimate": True,
            "jobs": 999_950,
            "images": 3_999_800,
            "bad": 1,
            "bad_lines": [{"line": 12, "reason": "prompt is empty."}],
            "warned": 1,
            "warnings": ["Line 7: zh-v0 cannot read 𰻝 and draws the prompt as if it were not there."],
            "columns": [
                {"column": "caption", "field": "prompt", "kept": False, "note": None},
                {"column": "id", "field": None, "kept": True, "note": None},
                {"column": "Unnamed: 0", "field": None, "kept": False, "note": "it is an index that pandas wrote"},
            ],
            "recipes": [RECIPE],
            "estimate": {"gpu_seconds": 1_999_900.0, "seconds": 499_975.0, "bytes": 1_279_936_000_000},
        }
    )

    format: str | None = Field(description="What the file was read as: `csv`, `xlsx` …; null for inline prompts.")
    encoding: str | None = Field(description="Of its text: `utf-8`, `gb18030` or `utf-16`.")
    prompts: int = Field(description="In the file, including wrong ones; a template counts as one.")
    checked_prompts: int = Field(description="The first of them, which were checked.")
    distinct: int = Field(description="Different prompts among `checked_prompts`, without wrong ones.")
    is_estimate: bool = Field(
        description="Whether that was only a part of the file: prompts, jobs, images and the estimate are then"
        " extrapolated."
    )
    jobs: int = Field(description="Of the prompts that can be rendered.")
    images: int
    bad: int = Field(
        description="Of `checked_prompts`, those that cannot be rendered; without `skip_bad` one ends the batch."
    )
    bad_lines: list[SkippedLine] = Field(description="The first of them.")
    warned: int = Field(description="Of `checked_prompts`, those whose pictures may not show everything.")
    warnings: list[str] = Field(description="Of the first of them.")
    columns: list[ColumnUse] = Field(description="What each column was taken for, in `checked_prompts`.")
    recipes: list[Recipe] = Field(description="The first ones.")
    estimate: BatchEstimate


@dataclass
class Tally:
    """What the lines that were read become."""

    prompts: int = 0
    positions: int = 0  # of a template each of its prompts takes one
    jobs: int = 0
    bad: int = 0
    warned: int = 0
    line: int = 0  # the last one that was read, and the offset behind it
    end: int = 0
    kinds: Counter[ImageKind] = field(default_factory=Counter)
    bad_lines: list[SkippedLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first: list[PlannedJob] = field(default_factory=list)
    distinct: set[int] = field(default_factory=set)  # hashes of prompts
    is_whole: bool = False

    def add(self, step: Step, checked: CheckedLines, format: str) -> None:
        self.prompts += len(step.lines)
        self.line, self.end, self.is_whole = step.last, step.end, step.is_last
        self.bad, self.warned = self.bad + len(checked.errors), self.warned + len(checked.warnings)
        wrong = islice(sorted(checked.errors.items()), SHOWN_BAD - len(self.bad_lines))
        self.bad_lines += [SkippedLine(line=number, reason=reason) for number, reason in wrong]
        warnings = islice(checked.warnings.items(), SHOWN_WARNINGS - len(self.warnings))
        self.warnings += [at_line(format, number, warning) for number, warning in warnings]
        self.distinct.update(hash(jobs[0].prompt) for jobs in checked.planned.values())
        for job in checked.jobs:
            recipe = job.template.recipe
            self.jobs += 1
            self.kinds[recipe.model, recipe.width, recipe.height, recipe.format] += len(job.seeds)


def dry_run(state: AppState, caller: Caller, request: BatchRequest) -> BatchDryRun:
    """Raises NotFound without the upload, Invalid for an unreadable file or a request that fits no prompt, and
    TierNotAllowed.
    """
    caller.require_tier(request.tier)
    plan = plan_of(state, caller, request)
    columns = plan.columns_of_file()
    with _open_prompts(state, caller, request, columns) as (file, upload):
        variants = planners(plan, state.catalog, image_finder(state, caller))
        tally = _read(file, upload.format if upload else INLINE, variants, columns, state.catalog, state.policy)
        length = file.length()
    if not tally.prompts:
        raise Invalid(sentence("no_prompts") if tally.is_whole else sentence("no_prompts_yet", line=tally.line))
    with transaction(state.autocommit) as connection:
        fleet, sizes = read_fleet(connection), _recent_sizes(connection)
    share = 1 if tally.is_whole else tally.end / length
    kinds = {kind: round(images / share) for kind, images in tally.kinds.items()}
    return BatchDryRun(
        format=shown_format(upload.format) if upload else None,
        encoding=upload.encoding if upload else None,
        prompts=round(tally.prompts / share),
        checked_prompts=tally.prompts,
        distinct=len(tally.distinct),
        is_estimate=not tally.is_whole,
        jobs=round(tally.jobs / share),
        images=sum(kinds.values()),
        bad=tally.bad,
        bad_lines=tally.bad_lines,
        warned=tally.warned,
        warnings=tally.warnings,
        columns=list(map(_column_use, columns.uses.values())),
        recipes=[Recipe.model_validate(job.recipe.model_dump()) for job in tally.first],
        estimate=_estimate(kinds, fleet, sizes),
    )


@contextmanager
def _open_prompts(
    state: AppState, caller: Caller, request: BatchRequest, columns: Columns
) -> Iterator[tuple[PromptFile, Upload | None]]:
    """The prompts, and the upload that they are in."""
    if request.prompts:
        data = b"".join(as_lines(request.prompts))
        yield PromptFile(lines([data], INLINE), lambda: len(data)), None
        return
    assert request.upload  # the request has one of the two
    with transaction(state.autocommit) as connection:
        upload = uploads.find_prompts(connection, caller.tenant_id, request.upload)
    if upload is None:
        raise NotFound(sentence("prompts_not_found", upload=request.upload))
    with open_prompts(state.storage, upload, columns) as file:
        yield file, upload


def _read(
    file: PromptFile, format: str, variants: list[Planner], columns: Columns, catalog: Catalog, policy: Policy
) -> Tally:
    """Check lines from the first one on, until MAX_PROMPTS or MAX_S. Raises Unavailable if reading does not begin."""
    tally, has_begun, until = Tally(), False, time.monotonic() + START_S
    at_once = 1 if variants[0].plan_of_batch.template else STEP_JOBS // len(variants)
    for step in steps(file.lines, max(1, at_once)):
        if not has_begun and file.length():
            has_begun, until = True, time.monotonic() + MAX_S
        checked = check.check_lines(step.lines, variants, tally.positions, columns, catalog, policy)
        if len(tally.first) < SHOWN_RECIPES:
            right = [line for line in step.lines if line.number in checked.planned][:SHOWN_RECIPES]
            # Planned again without the wrong lines: a wrong line takes no seeds.
            planned = check.plan_lines(right, variants, tally.positions, columns)
            tally.first += islice(planned.jobs, SHOWN_RECIPES - len(tally.first))
        tally.add(step, checked, format)
        tally.positions += checked.count_prompts(len(variants))
        if tally.prompts >= MAX_PROMPTS or time.monotonic() > until:
            break
    if not has_begun:
        raise Unavailable(sentence("conversion_slow"))
    return tally


def _column_use(use: Use) -> ColumnUse:
    left_out = sentence("column_is_index") if use.is_index else sentence("column_left_out")
    note = None if use.field or use.is_kept else left_out
    return ColumnUse(column=use.column, field=use.field, kept=use.is_kept, note=note)


def _estimate(kinds: Mapping[ImageKind, int], fleet: Fleet, sizes: Mapping[ImageKind, float]) -> BatchEstimate:
    images = Counter[str]()
    for (model, *_), count in kinds.items():
        images[model] += count
    rates = {model: fleet.images_per_second(model) for model in images}
    seconds = {model: count / rate for model, count in images.items() if (rate := rates[model])}
    knows_speed, knows_sizes = all(rates.values()), kinds.keys() <= sizes.keys()
    return BatchEstimate(
        gpu_seconds=round(sum(s * fleet.ready_count(model) for model, s in seconds.items()), 1)
        if knows_speed
        else None,
        seconds=round(sum(seconds.values()), 1) if knows_speed else None,
        bytes=round(sum(count * sizes[kind] for kind, count in kinds.items())) if knows_sizes else None,
    )


def _recent_sizes(connection: Connection) -> dict[ImageKind, float]:
    """Average bytes of an image by its kind, among those rendered last."""
    rows = connection.execute(RECENT_SIZES)
    return {(row.model, row.width, row.height, row.format): row.bytes for row in rows}


# The average size of the stored images of the last leases, by model, size and format.
RECENT_SIZES = text(f"""
    WITH recent AS MATERIALIZED (
        SELECT unnest(image_ids) AS id
        FROM (SELECT image_ids FROM leases ORDER BY id DESC LIMIT {RECENT_LEASES}) AS last)
    SELECT model, (recipe ->> 'width')::int AS width, (recipe ->> 'height')::int AS height,
           recipe ->> 'format' AS format, avg(images.bytes)::float AS bytes
    FROM recent JOIN images USING (id) JOIN jobs ON jobs.id = images.job_id
    WHERE images.state = 'stored'
    GROUP BY 1, 2, 3, 4
""")
