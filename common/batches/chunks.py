"""The chunks of a batch's file: how far the file is checked or expanded, and the fence of each step.

The file is read in chunks. Each chunk is one transaction that moves the `offset` of the batch, fenced by the offset at
which it began. So any control worker can go on where another stopped, and two at once do nothing twice. Reads no file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.accounts.admission import UNLIMITED, admit
from common.accounts.limits import Limits
from common.batches import skipped_lines
from common.batches.plan import Plan
from common.db import CODE
from common.enums import Tier
from common.failures import RESTED
from common.recipes.origin import Kinds
from common.schema import batches, columns_of
from common.uploads import Upload

SHOWN_WARNINGS = 20


@dataclass(frozen=True)
class Batch:
    """What a control worker needs of a batch. Its file is read up to `offset`, which is behind line `line`.

    Of a retry (`parent_id`), `offset` is the position up to which the jobs of its parent are read.
    """

    id: UUID
    tenant_id: UUID
    tier: Tier
    plan: Plan
    upload: Upload
    is_checked: bool
    is_expanded: bool
    is_cancelled: bool
    offset: int
    line: int
    prompts: int
    skipped: int
    jobs: int
    variants: int
    request_id: str | None
    parent_id: UUID | None = None
    expected: int | None = None  # images, if that was known at the submission
    counted: int = 0  # images of the lines that were checked
    own_limits: Mapping[str, Any] = field(default_factory=dict)  # of its tenant
    kinds: Kinds = field(default_factory=dict)  # of the kept values of the lines that were checked
    key_id: UUID | None = None

    @property
    def position(self) -> int:
        """The position of the next prompt to check or to expand."""
        return self.jobs // self.variants if self.is_checked else self.prompts

    def after(self, chunk: "Chunk") -> "Batch":
        """The batch once this chunk is checked or expanded."""
        moved = replace(self, offset=chunk.offset, line=chunk.line)
        if self.is_checked:
            return replace(moved, jobs=self.jobs + chunk.prompts * self.variants)
        moved = replace(moved, skipped=self.skipped + len(chunk.skipped), counted=self.counted + chunk.images)
        moved = replace(moved, kinds=chunk.kinds)
        return replace(moved, prompts=self.prompts + chunk.prompts)

    def more(self, chunk: "Chunk") -> int:
        """By how many images this chunk of the check raises what is known of the batch."""
        return max(0, self.counted + chunk.images - max(self.counted, self.expected or 0))


@dataclass(frozen=True)
class Chunk:
    """A part of the file: its end, its number of prompts and, if it was checked, its warnings and skipped lines.

    `needs_code`: the least CODE that can expand it. `images`: of its prompts, if it was checked. `kinds`: of the kept
    values of all lines up to its end, if it was checked.
    """

    offset: int
    line: int
    is_last: bool
    prompts: int
    warnings: Sequence[str] = ()
    skipped: Mapping[int, str] = field(default_factory=dict)
    needs_code: int = 1
    images: int = 0
    kinds: Kinds = field(default_factory=dict)


def read_batch(connection: Connection, batch_id: UUID) -> Batch | None:
    """A batch that has not ended. None in its back-off, or if it needs newer code and is not cancelled."""
    row = connection.execute(READ, {"batch": batch_id, "code": CODE}).first()
    return _batch(row) if row else None


def record_checked(connection: Connection, batch: Batch, chunk: Chunk, limits: Limits = UNLIMITED) -> bool:
    """Record that a chunk was checked; after the last one the batch is checked. False if another worker was first.

    Raises LimitReached if the images of the chunk do not fit.
    """
    kept = json.dumps(list(chunk.kinds.items()))
    found = {"skipped": len(chunk.skipped), "needs_code": chunk.needs_code, "kept": kept}
    parameters = fence_params(batch) | progress_params(chunk) | found
    is_first = connection.execute(CHECKED, parameters).rowcount > 0
    if is_first:
        skipped_lines.add(connection, batch.id, chunk.skipped)
        _count(connection, batch, chunk, limits)
    return is_first


def _count(connection: Connection, batch: Batch, chunk: Chunk, limits: Limits) -> None:
    if more := batch.more(chunk):
        interactive = more if batch.tier is Tier.INTERACTIVE else 0
        admit(connection, batch.tenant_id, limits, images=more, interactive=interactive)
    connection.execute(COUNTED, {"batch": batch.id, "images": chunk.images})


def fence_params(batch: Batch) -> dict[str, Any]:
    """The parameters of FENCE."""
    return {"batch": batch.id, "offset_before": batch.offset, "jobs_before": batch.jobs}


def progress_params(chunk: Chunk) -> dict[str, Any]:
    """The parameters that move a batch behind this chunk."""
    return {
        "offset": chunk.offset,
        "line": chunk.line,
        "is_last": chunk.is_last,
        "prompts": chunk.prompts,
        "warned": len(chunk.warnings),
        "warnings": list(chunk.warnings[:SHOWN_WARNINGS]),
    }


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        tenant_id=row.tenant_id,
        tier=Tier(row.tier),
        plan=Plan.model_validate(row.plan, extra="ignore"),
        upload=Upload(row.upload_id, row.format, row.bytes, row.sha256, encoding=row.encoding),
        is_checked=row.checked_at is not None,
        is_expanded=row.expanded_at is not None,
        is_cancelled=row.cancelled_at is not None,
        offset=row.offset,
        line=row.line,
        prompts=row.prompts or 0,
        skipped=row.skipped,
        jobs=row.jobs,
        variants=row.variants,
        request_id=row.request_id,
        parent_id=row.parent_id,
        expected=row.expected,
        counted=row.counted,
        own_limits=row.own_limits,
        key_id=row.key_id,
        kinds=dict(row.kept),
    )


# The batch is where the worker read it, and has not ended.
FENCE = (
    'id = :batch AND "offset" = :offset_before AND jobs = :jobs_before AND cancelled_at IS NULL AND finished_at IS NULL'
)

# Whether a chunk brings its batch further: when nothing of the file came in between, it only shows that work goes on.
FURTHER = '("offset" < :offset OR :is_last)'

# What `failures.PROGRESS` sets, if the chunk brings the batch further.
CHUNK_PROGRESS = f"""
        failures = CASE WHEN {FURTHER} THEN 0 ELSE failures END,
        retry_at = CASE WHEN {FURTHER} THEN NULL ELSE retry_at END,
        open_turns = CASE WHEN {FURTHER} THEN 1 ELSE open_turns END
"""

# To settle a cancelled batch needs no newer code.
UNDERSTOOD = "(needs_code <= :code OR cancelled_at IS NOT NULL)"

# Read a batch that has not ended and whose back-off is over, with its file.
READ = text(f"""
    SELECT {columns_of(batches)}, uploads.format, uploads.bytes, uploads.sha256, uploads.encoding,
           tenants.limits AS own_limits
    FROM batches JOIN uploads ON uploads.id = upload_id JOIN tenants ON tenants.id = batches.tenant_id
    WHERE batches.id = :batch AND finished_at IS NULL AND {RESTED} AND {UNDERSTOOD}
""")

# Move a batch behind a checked chunk; behind the last one it is checked, and its expansion begins at the file's start.
CHECKED = text(f"""
    UPDATE batches SET
        "offset" = CASE WHEN :is_last THEN 0 ELSE :offset END, line = CASE WHEN :is_last THEN 0 ELSE :line END,
        prompts = coalesce(prompts, 0) + :prompts, skipped = skipped + :skipped,
        needs_code = greatest(needs_code, :needs_code), kept = cast(:kept AS jsonb),
        warned = warned + :warned, warnings = (warnings || cast(:warnings AS text[]))[1 : {SHOWN_WARNINGS}],
        checked_at = CASE WHEN :is_last THEN now() END, touched_at = now(), {CHUNK_PROGRESS}
    WHERE {FENCE} AND checked_at IS NULL
""")

# Count the images of a checked chunk, once they are admitted.
COUNTED = text("UPDATE batches SET counted = counted + :images WHERE id = :batch")
