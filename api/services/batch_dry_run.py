"""Dry runs of batches: what a batch would become, without storing anything.

A file may have a hundred million lines. A dry run reads for a few seconds at most, reports how much it has read, and
extrapolates from that to the whole file. A tenant has one at a time.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api import sentence
from api.deps import AppState
from api.queries.batches import SkippedLine
from api.schemas import RECIPE, Recipe, Unknown, example
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
from common.estimates import estimate
from common.estimates import sentence as why
from common.estimates.farm import read_farm
from common.estimates.speed import Kind, Speed
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
    """By what the farm did lately, from the claim to the publication, and by what waits now; null while unknown."""

    gpu_seconds: float | None = Field(description="In pipeline calls, of all workers together.")
    seconds: float | None = Field(
        description="Until the batch would end: its check, what waits now and is before it, loads of models, and its"
        " own images. As likely to be exceeded as not."
    )
    seconds_p90: float | None = Field(description="What nine of ten stay below.")
    unknown: Unknown | None = Field(description="Why `seconds` is null.")
    bytes: int | None = Field(
        description="Of the pictures, if they are as large as recent ones of the same model, size and format."
    )
    bytes_unknown: Unknown | None = Field(description="Why `bytes` is null.")


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
            "is_estimate": True,
            "jobs": 999_950,
            "images": 3_999_800,
            "bad": 1,
            "bad_lines": [{"line": 12, "reason": "prompt is empty."}],
            "distinct": 19_204,
            "warned": 1,
            "warnings": ["Line 7: zh-v0 cannot read 𰻝 and draws the prompt as if it were not there."],
            "columns": [
                {"column": "caption", "field": "prompt", "kept": False, "note": None},
                {"column": "id", "field": None, "kept": True, "note": None},
                {"column": "Unnamed: 0", "field": None, "kept": False, "note": "it is an index that pandas wrote"},
            ],
            "recipes": [RECIPE],
            "estimate": {
                "gpu_seconds": 1_999_900.0,
                "seconds": 519_975.0,
                "seconds_p90": 571_973.0,
                "unknown": None,
                "bytes": 1_279_936_000_000,
                "bytes_unknown": None,
            },
        }
    )

    format: str | None = Field(description="What the file was read as: `csv`, `xlsx` …; null for inline prompts.")
    encoding: str | None = Field(description="Of its text: `utf-8`, `gb18030` or `utf-16`.")
    prompts: int = Field(description="In the file, including wrong ones; a template counts as one.")
    checked_prompts: int = Field(description="The first of them, which were checked.")
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
    distinct: int = Field(
        description="Of `checked_prompts` that can be rendered, how many differ: in the prompt or in another field than"
        " the seed. Doubles become jobs too, each with a seed of its own."
    )
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
    checked_s: float = 0.0  # that their check took
    sizes: Counter[ImageKind] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    distinct: set[bytes] = field(default_factory=set)  # digests: MAX_PROMPTS at most
    bad_lines: list[SkippedLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first: list[PlannedJob] = field(default_factory=list)
    is_whole: bool = False

    def add(self, step: Step, checked: CheckedLines, format: str) -> None:
        self.prompts += len(step.lines)
        self.line, self.end, self.is_whole = step.last, step.end, step.is_last
        self.bad, self.warned = self.bad + len(checked.errors), self.warned + len(checked.warnings)
        wrong = islice(sorted(checked.errors.items()), SHOWN_BAD - len(self.bad_lines))
        self.bad_lines += [SkippedLine(line=number, reason=reason) for number, reason in wrong]
        warnings = islice(checked.warnings.items(), SHOWN_WARNINGS - len(self.warnings))
        self.warnings += [at_line(format, number, warning) for number, warning in warnings]
        for job in checked.jobs:
            recipe = job.template.recipe
            self.jobs += 1
            self.sizes[recipe.model, recipe.width, recipe.height, recipe.format] += len(job.seeds)
            kind = Kind(recipe.model, job.template.lane[0], float(recipe.steps * recipe.width * recipe.height))
            self.kinds[kind] += len(job.seeds)
        self.distinct.update(_digest(variants[0]) for variants in checked.planned.values())


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
        farm = read_farm(connection, [kind.model for kind in tally.kinds])
        weight, sizes = estimate.weight_of(connection, caller.tenant_id), _recent_sizes(connection)
    share = 1 if tally.is_whole else tally.end / length
    kinds = {kind: round(images / share) for kind, images in tally.kinds.items()}
    prompts, prompt_s = tally.prompts / share, tally.checked_s / tally.prompts
    end = estimate.of_new_batch(farm, caller.tenant_id, weight, request.tier, kinds, prompts, prompt_s)
    return BatchDryRun(
        format=shown_format(upload.format) if upload else None,
        encoding=upload.encoding if upload else None,
        prompts=round(prompts),
        checked_prompts=tally.prompts,
        is_estimate=not tally.is_whole,
        jobs=round(tally.jobs / share),
        images=sum(kinds.values()),
        bad=tally.bad,
        bad_lines=tally.bad_lines,
        distinct=len(tally.distinct),
        warned=tally.warned,
        warnings=tally.warnings,
        columns=list(map(_column_use, columns.uses.values())),
        recipes=[Recipe.model_validate(job.recipe.model_dump()) for job in tally.first],
        estimate=BatchEstimate(
            gpu_seconds=_gpu_seconds(kinds, farm.speed),
            seconds=end.seconds,
            seconds_p90=end.seconds_p90,
            unknown=Unknown.of(end),
            **_bytes(tally.sizes, share, sizes),
        ),
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
        began = time.monotonic()
        checked = check.check_lines(step.lines, variants, tally.positions, columns, catalog, policy)
        tally.checked_s += time.monotonic() - began
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


def _digest(job: PlannedJob) -> bytes:
    """Equal for prompts that differ in their seeds alone."""
    return blake2b(f"{job.template.rest_of_json}\0{job.prompt}".encode(errors="replace"), digest_size=16).digest()


def _gpu_seconds(kinds: Mapping[Kind, int], speed: Speed) -> float | None:
    """In pipeline calls; None while the speed of one kind is unknown."""
    spent = [images * seconds for kind, images in kinds.items() if (seconds := speed.render_s(kind)) is not None]
    return round(sum(spent), 1) if len(spent) == len(kinds) else None


def _bytes(images: Mapping[ImageKind, int], share: float, sizes: Mapping[ImageKind, float]) -> dict[str, Any]:
    if not images.keys() <= sizes.keys():
        return {"bytes": None, "bytes_unknown": Unknown.of(estimate.unknown(why("no_sizes")))}
    return {"bytes": round(sum(count * sizes[kind] for kind, count in images.items()) / share), "bytes_unknown": None}


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
