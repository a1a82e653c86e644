"""Batches as their tenant sees them. Reads only; `common.batches.lifecycle` changes them.

A page is one query, whose cost does not grow with the size of its batches: lanes count ended images, and running images
are found by the open leases. A cancelled batch is shown as ended, and its open images as cancelled, while a control
worker still settles its jobs.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row, TextClause, text

from api import sentence
from api.schemas import Unknown, example
from common.batches.plan import Plan
from common.batches.progress import read_samples
from common.batches.throughput import StopRule, images_per_minute
from common.enums import BatchState, Tier
from common.errors import NotFound
from common.estimates import sentence as why
from common.estimates.estimate import Estimate, of_batch, unknown
from common.estimates.farm import Farm, read_farm, recent_farm
from common.prompt_files.columns import Keep
from common.queue.lanes import EXACT
from common.schema import batches, columns_of

GOES_ON = (BatchState.EXPANDING, BatchState.RUNNING)
SHOWN_SKIPS = 20

BATCH: dict[str, Any] = {
    "id": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081",
    "name": "doors, first try",
    "state": "running",
    "tier": "bulk",
    "model": "zh-v0",
    "images_per_prompt": 4,
    "seed": 42,
    "defaults": {"model": "zh-v0", "steps": 30},
    "matrix": {},
    "variants": 1,
    "template": None,
    "upload_id": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
    "parent_id": None,
    "retry_id": None,
    "stop_rule": {"percent": 20, "of_last": 50},
    "prompts": 1000,
    "jobs": 1000,
    "images": {"total": 4000, "open": 3100, "stored": 897, "flagged": 1, "failed": 2, "cancelled": 0},
    "running": 8,
    "images_per_minute": 120.0,
    "eta_seconds": 1550.0,
    "eta_seconds_p90": 1840.0,
    "eta_unknown": None,
    "warned": 2,
    "warnings": ["Line 7: zh-v0 cannot read 𰻝 and draws the prompt as if it were not there."],
    "columns": {"prompt": "caption"},
    "keep": ["id", "category"],
    "skip_bad": True,
    "reuse": False,
    "skipped": 1,
    "skips": [{"line": 12, "reason": "prompt is empty."}],
    "error": None,
    "created_at": "2026-11-22T08:00:00Z",
    "expanded_at": "2026-11-22T08:00:02Z",
    "paused_at": None,
    "paused_because": None,
    "cancelled_at": None,
    "finished_at": None,
}


class BatchImages(BaseModel):
    """The images of a batch by state."""

    total: int | None = Field(description="Null until all jobs of the batch exist.")
    open: int = Field(description="That have not ended.")
    stored: int
    flagged: int
    failed: int
    cancelled: int


class SkippedLine(BaseModel):
    """A line of a batch's file that cannot be rendered."""

    line: int = Field(description="Its number, from 1; for Parquet the number of the row.", examples=[12])
    reason: str = Field(examples=["prompt is empty."])


class BatchTemplate(BaseModel):
    """How its prompts are read as templates."""

    samples: int | None = Field(description="Of each; null: all combinations.")
    wildcards: list[str] = Field(description="The names of those whose values were given.")


class BatchError(BaseModel):
    code: str = Field(examples=["invalid"])
    message: str = Field(examples=["Line 7: it is not JSON."])


class Batch(BaseModel):
    """Jobs that were submitted together."""

    model_config = example(BATCH)

    id: UUID
    name: str
    state: BatchState
    tier: Tier
    model: str = Field(description="Of all prompts that name none; the first of those in the matrix.")
    images_per_prompt: int
    seed: int = Field(description="Of the first image; the others count up from it.")
    defaults: dict[str, Any] = Field(description="What its recipes have in common.")
    matrix: dict[str, Any] = Field(description="What each prompt is rendered with.")
    variants: int = Field(description="Combinations of the matrix: each prompt becomes so many jobs.")
    template: BatchTemplate | None = Field(description="Null: its prompts are text.")
    upload_id: UUID
    parent_id: UUID | None = Field(description="The batch whose failed images it retries.")
    retry_id: UUID | None = Field(description="The batch that retries its failed images.")
    stop_rule: StopRule | None = Field(description="When it pauses by itself.")
    prompts: int | None = Field(
        description="In its file, as far as it was checked, with those of templates; of a retry, those that failed."
    )
    jobs: int = Field(description="Made from its prompts so far.")
    images: BatchImages
    running: int = Field(description="Images that are being rendered now.")
    images_per_minute: float | None = Field(
        description="That ended, in about the last minute; null while it is unknown."
    )
    eta_seconds: float | None = Field(
        description="Estimated time until it ends, behind what waits now and is before it; null while it is unknown."
    )
    eta_seconds_p90: float | None = Field(description="What nine of ten stay below.")
    eta_unknown: Unknown | None = Field(description="Why a batch that has not ended has no `eta_seconds`.")
    warned: int = Field(description="Prompts whose pictures may not show everything.")
    warnings: list[str] = Field(description="Of the first of them.")
    columns: dict[str, str] = Field(description="The column of a field, where its name does not say so.")
    keep: Keep = Field(description="The columns whose values go into datasets; `all`: those that mean no field.")
    skip_bad: bool = Field(description="Whether prompts that cannot be rendered are left out.")
    reuse: bool = Field(description="Whether pictures that are stored already are not rendered again.")
    skipped: int = Field(description="Lines left out, as far as its file was checked.")
    skips: list[SkippedLine] = Field(description="The first of them.")
    error: BatchError | None = Field(description="Why its prompts cannot be rendered.")
    created_at: datetime
    expanded_at: datetime | None = Field(description="When all its jobs existed.")
    paused_at: datetime | None
    paused_because: str | None = Field(description="Why it is paused, if its stop rule paused it.")
    cancelled_at: datetime | None
    finished_at: datetime | None = Field(description="When all its images and jobs had ended.")


def find_batch(connection: Connection, tenant_id: UUID, batch_id: UUID) -> Batch:
    """Raises NotFound when the tenant has no such batch."""
    found = _read(connection, READ_BATCH, {"tenant": tenant_id, "batch": batch_id, "limit": 1})
    if not found:
        raise NotFound(sentence("batch_not_found", batch=batch_id))
    return found[0]


def find_batches(connection: Connection, tenant_id: UUID, before: UUID | None, limit: int) -> list[Batch]:
    """A page of batches, newest first: those that are older than the one of `before`."""
    page = {"tenant": tenant_id, "before": before or UUID(int=2**128 - 1), "limit": limit}
    return _read(connection, READ_PAGE, page)


def _read(connection: Connection, statement: TextClause, parameters: Mapping[str, Any]) -> list[Batch]:
    rows = connection.execute(statement, parameters).all()
    rendering = [row for row in rows if row.open and row.state in GOES_ON and not row.cancelled_at]
    farm = recent_farm(connection) if rendering else None
    if farm and any(row.id not in farm.lanes for row in rendering) and not farm.has_more:
        farm = read_farm(connection)  # it came since the farm was looked at
    return [_batch(row, farm) for row in rows]


def _batch(row: Row[Any], farm: Farm | None) -> Batch:
    plan, is_cancelled = Plan.model_validate(row.plan, extra="ignore"), row.cancelled_at is not None
    shown_open = 0 if is_cancelled else row.open
    state = BatchState.ENDED if is_cancelled else BatchState(row.state)
    rate = images_per_minute(read_samples(row.progress_samples)) if state in GOES_ON else None
    end = _estimate(row, state, rate, farm)
    return Batch(
        id=row.id,
        name=row.name,
        state=state,
        tier=row.tier,
        model=plan.models[0],
        images_per_prompt=plan.images_per_prompt,
        seed=plan.seed,
        defaults=plan.defaults,
        matrix=plan.matrix,
        variants=row.variants,
        template=BatchTemplate(samples=plan.template.samples, wildcards=list(plan.template.wildcards))
        if plan.template
        else None,
        upload_id=row.upload_id,
        parent_id=row.parent_id,
        retry_id=row.retry_id,
        stop_rule=StopRule.model_validate(row.stop_rule, extra="ignore") if row.stop_rule else None,
        prompts=row.prompts,
        jobs=row.jobs,
        images=BatchImages(
            total=row.images - row.deleted if row.expanded_at or state == BatchState.ENDED else None,
            open=shown_open,
            stored=row.stored,
            flagged=row.flagged,
            failed=row.failed,
            cancelled=row.cancelled + row.open - shown_open,
        ),
        running=row.running,
        images_per_minute=rate,
        eta_seconds=end.seconds,
        eta_seconds_p90=end.seconds_p90,
        eta_unknown=Unknown.of(end),
        warned=row.warned,
        warnings=row.warnings,
        columns=plan.columns,
        keep=plan.keep,
        skip_bad=plan.skip_bad,
        reuse=plan.reuse,
        skipped=row.skipped,
        skips=row.skips or [],
        error=BatchError(code=row.error_code, message=row.error_message) if row.error_code else None,
        created_at=row.created_at,
        expanded_at=row.expanded_at,
        paused_at=row.paused_at,
        paused_because=row.paused_because if state == BatchState.PAUSED else None,
        cancelled_at=row.cancelled_at,
        finished_at=row.finished_at,
    )


def _estimate(row: Row[Any], state: BatchState, rate: float | None, farm: Farm | None) -> Estimate:
    if state == BatchState.ENDED:
        return Estimate(None, None)
    if state == BatchState.PAUSED:
        return unknown(why("paused"))
    if state == BatchState.CHECKING or (state == BatchState.EXPANDING and not row.open):
        return unknown(why("preparing"))
    return of_batch(farm, row.id, row.open, rate) if farm else Estimate(0.0, 0.0)


# The first skipped lines of a batch, as JSON.
SKIPS = f"""
    CASE WHEN page.skipped > 0 THEN (
        SELECT json_agg(json_build_object('line', line, 'reason', reason) ORDER BY line)
        FROM (SELECT * FROM skipped_lines WHERE batch_id = page.id ORDER BY line LIMIT {SHOWN_SKIPS}) AS first)
    END AS skips"""

# A page of batches: what their lanes count and is not deleted, how many of their images are running, who retries them.
READ_BATCHES = f"""
    WITH page AS MATERIALIZED (
        SELECT * FROM batches WHERE tenant_id = :tenant AND deleted_at IS NULL AND {{filter}}
        ORDER BY id DESC LIMIT :limit),
    busy AS MATERIALIZED (
        SELECT lanes.batch_id, count(*) AS running
        FROM leases
        JOIN images ON images.id = ANY(leases.image_ids) AND images.lease_id = leases.id AND images.state = 'running'
        JOIN lanes ON lanes.id = images.lane_id
        WHERE leases.ended_at IS NULL AND lanes.batch_id = ANY(ARRAY(SELECT id FROM page))
        GROUP BY lanes.batch_id),
    exact AS MATERIALIZED (SELECT * FROM {EXACT} AS lanes WHERE batch_id = ANY(ARRAY(SELECT id FROM page)))
    SELECT {columns_of(batches, "page")}, counted.*, coalesce(busy.running, 0) AS running,
           (SELECT id FROM batches AS retry WHERE retry.parent_id = page.id AND retry.cancelled_at IS NULL
                AND retry.deleted_at IS NULL) AS retry_id,
           {SKIPS}
    FROM page
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(open), 0)::bigint AS open, coalesce(sum(stored - deleted_stored), 0)::bigint AS stored,
               coalesce(sum(flagged - deleted_flagged), 0)::bigint AS flagged,
               coalesce(sum(failed - deleted_failed), 0)::bigint AS failed,
               coalesce(sum(cancelled - deleted_cancelled), 0)::bigint AS cancelled,
               coalesce(sum(deleted_stored + deleted_flagged + deleted_failed + deleted_cancelled), 0)::bigint
                   AS deleted
        FROM exact WHERE exact.batch_id = page.id) AS counted
    LEFT JOIN busy ON busy.batch_id = page.id
    ORDER BY page.id DESC
"""
READ_BATCH = text(READ_BATCHES.format(filter="id = :batch"))
READ_PAGE = text(READ_BATCHES.format(filter="id < :before"))
