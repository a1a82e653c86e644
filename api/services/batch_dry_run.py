"""Dry runs of batches: what would become of some prompts, found out without storing anything.

A file may have a hundred million lines, and somebody waits for the answer. So no more of it is read than a few seconds
allow, and the answer says how much that was; what it says of all of them is worked out from those.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api.deps import AppState
from api.queries.batches import Skip
from api.queries.fleet import Fleet, read_fleet
from api.schemas import RECIPE, Recipe, example
from api.services.batches import INLINE, BatchRequest, as_lines, plan_of
from api.services.jobs import image_finder
from common import uploads
from common.accounts.tenants import Caller
from common.batches import check
from common.batches.check import CheckedLines
from common.batches.plan import PlannedJob, Planner, planners
from common.catalog.catalog import Catalog
from common.db import transaction
from common.errors import Invalid, NotFound
from common.prompt_files.lines import Line, at_line, lines, take
from common.prompt_files.reader import PromptFile, open_prompts

MOST_PROMPTS = 20_000
MOST_S = 3.0
STEP = 1000  # jobs that are looked at together
SHOWN_RECIPES, SHOWN_BAD, SHOWN_WARNINGS = 5, 20, 20
RECENT_LEASES = 500  # whose pictures tell how large one is

Kind = tuple[str, int, int, str]  # of picture: model, width, height, format


class BatchEstimate(BaseModel):
    """On the workers that are up; null: nobody knows."""

    gpu_seconds: float | None = Field(description="In pipeline calls, of all workers together.")
    seconds: float | None = Field(description="Until it has ended, if it has the workers for itself.")
    bytes: int | None = Field(description="Of the pictures, if they are as large as the last ones of their kind.")


class BatchDryRun(BaseModel):
    """What a batch would become."""

    model_config = example(
        {
            "prompts": 1_000_000,
            "checked_prompts": 20_000,
            "is_estimate": True,
            "jobs": 999_950,
            "images": 3_999_800,
            "bad": 1,
            "bad_lines": [{"line": 12, "reason": "prompt is empty."}],
            "warned": 1,
            "warnings": ["Line 7: zh-v0 cannot read 𰻝 and draws the prompt as if it were not there."],
            "recipes": [RECIPE],
            "estimate": {"gpu_seconds": 1_999_900.0, "seconds": 499_975.0, "bytes": 1_279_936_000_000},
        }
    )

    prompts: int = Field(description="In its file, wrong ones too.")
    checked_prompts: int = Field(description="The first of them, which were looked at.")
    is_estimate: bool = Field(
        description="Whether that was not the whole file: prompts, jobs, images and the estimate are then what it has"
        " if it goes on like that."
    )
    jobs: int = Field(description="Of the prompts that can be rendered.")
    images: int
    bad: int = Field(description="Those of `checked_prompts` that cannot be; without `skip_bad` one ends the batch.")
    bad_lines: list[Skip] = Field(description="The first of them.")
    warned: int = Field(description="Those of `checked_prompts` whose pictures may not show what they say.")
    warnings: list[str] = Field(description="Of the first of them.")
    recipes: list[Recipe] = Field(description="The first ones.")
    estimate: BatchEstimate


@dataclass
class Tally:
    """What is found in the lines, as far as they are looked at."""

    prompts: int = 0
    jobs: int = 0
    bad: int = 0
    warned: int = 0
    end: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    bad_lines: list[Skip] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first: list[PlannedJob] = field(default_factory=list)
    is_whole: bool = False

    def add(self, here: Sequence[Line], lines: CheckedLines, called: str) -> None:
        self.prompts, self.end = self.prompts + len(here), here[-1].end
        self.bad, self.warned = self.bad + len(lines.errors), self.warned + len(lines.warnings)
        wrong = islice(sorted(lines.errors.items()), SHOWN_BAD - len(self.bad_lines))
        self.bad_lines += [Skip(line=number, reason=reason) for number, reason in wrong]
        warnings = islice(lines.warnings.items(), SHOWN_WARNINGS - len(self.warnings))
        self.warnings += [at_line(called, number, warning) for number, warning in warnings]
        for one in lines.jobs:
            recipe = one.template.recipe
            self.jobs += 1
            self.kinds[recipe.model, recipe.width, recipe.height, recipe.format] += len(one.seeds)


def dry_run(state: AppState, caller: Caller, request: BatchRequest) -> BatchDryRun:
    """Raises Invalid for what suits no prompt, and for a file that cannot be read; NotFound when there is none."""
    plan = plan_of(state, caller, request)
    with the_file(state, caller, request) as (file, called):
        variants = planners(plan, state.catalog, image_finder(state, caller))
        tally = looked_at(file, called, variants, state.catalog)
    if not tally.prompts:
        raise Invalid("The file has no prompts.")
    with transaction(state.autocommit) as connection:
        crew, sizes = read_fleet(connection), recent_sizes(connection)
    share = 1 if tally.is_whole else tally.end / file.length
    kinds = {kind: round(images / share) for kind, images in tally.kinds.items()}
    return BatchDryRun(
        prompts=round(tally.prompts / share),
        checked_prompts=tally.prompts,
        is_estimate=not tally.is_whole,
        jobs=round(tally.jobs / share),
        images=sum(kinds.values()),
        bad=tally.bad,
        bad_lines=tally.bad_lines,
        warned=tally.warned,
        warnings=tally.warnings,
        recipes=[Recipe.model_validate(one.recipe.model_dump()) for one in tally.first],
        estimate=estimate(kinds, crew, sizes),
    )


@contextmanager
def the_file(state: AppState, caller: Caller, request: BatchRequest) -> Iterator[tuple[PromptFile, str]]:
    """Where the prompts are, and what one of its lines is called."""
    if request.prompts:
        data = b"".join(as_lines(request.prompts))
        yield PromptFile(lines([data], INLINE), len(data)), INLINE
        return
    assert request.upload  # the request has one of the two
    with transaction(state.autocommit) as connection:
        upload = uploads.find_prompts(connection, caller.tenant_id, request.upload)
    if upload is None:
        raise NotFound(f"There is no upload {request.upload} with prompts in it.")
    with open_prompts(state.storage, upload) as file:
        yield file, upload.format


def looked_at(file: PromptFile, called: str, variants: Sequence[Planner], catalog: Catalog) -> Tally:
    """The lines from the first one on, as many as the time allows."""
    tally, until = Tally(), time.monotonic() + MOST_S
    while tally.prompts < MOST_PROMPTS and time.monotonic() < until:
        here = take(file.lines, max(1, STEP // len(variants)))
        if not here:
            return replace(tally, is_whole=True)
        found = check.check_lines(here, variants, tally.prompts - tally.bad, catalog)
        if len(tally.first) < SHOWN_RECIPES:
            right = [line for line in here if line.number in found.planned][:SHOWN_RECIPES]
            again = check.plan_lines(right, variants, tally.prompts - tally.bad)  # as if no wrong one were between them
            tally.first += islice(again.jobs, SHOWN_RECIPES - len(tally.first))
        tally.add(here, found, called)
    return replace(tally, is_whole=tally.end >= file.length)


def estimate(kinds: Mapping[Kind, int], crew: Fleet, sizes: Mapping[Kind, float]) -> BatchEstimate:
    images = Counter[str]()
    for (model, *_), count in kinds.items():
        images[model] += count
    rates = {model: crew.images_per_second(model) for model in images}
    seconds = {model: count / rate for model, count in images.items() if (rate := rates[model])}
    knows_speed, knows_sizes = all(rates.values()), kinds.keys() <= sizes.keys()
    return BatchEstimate(
        gpu_seconds=round(sum(s * crew.ready_count(model) for model, s in seconds.items()), 1) if knows_speed else None,
        seconds=round(sum(seconds.values()), 1) if knows_speed else None,
        bytes=round(sum(count * sizes[kind] for kind, count in kinds.items())) if knows_sizes else None,
    )


def recent_sizes(connection: Connection) -> dict[Kind, float]:
    """How many bytes a picture has, by its kind: of those that were painted last."""
    rows = connection.execute(RECENT_SIZES)
    return {(row.model, row.width, row.height, row.format): row.bytes for row in rows}


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
