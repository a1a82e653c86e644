"""The expansion of a batch: inserts the jobs of a chunk of its prompts, by COPY. Reads no file.

The text for COPY is written by hand: the driver takes ten times as long for a row, and a batch has a million rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text
from uuid_utils import uuid7

from common.accounts.admission import UNLIMITED, count_day
from common.accounts.limits import Limits
from common.batches.chunks import CHUNK_PROGRESS, FENCE, Batch, Chunk, fence_params, progress_params
from common.batches.plan import PlannedJob
from common.queue import reuse
from common.queue.lanes import Lane, make_lanes
from common.queue.reuse import Candidate, Linked

NO_LORAS: Mapping[str, str] = {}


@dataclass(frozen=True)
class JobRows:
    """The rows of a chunk as text for COPY, and the number of jobs by model and of images by `lane` of their template.

    The rows of images have placeholders for the ids of the `lanes`. `reusing`: the jobs that take
    stored pictures, each with the ids of its images.
    """

    models: Mapping[str, int]
    lanes: Mapping[tuple[str, str, int], int]
    jobs: str
    images: str
    reusing: Sequence[tuple[Sequence[UUID], PlannedJob]] = ()


def build_rows(batch: Batch, planned: Iterable[PlannedJob], position: int) -> JobRows:
    """The rows of these jobs, the first one at this position. Needs no connection."""
    key_id = _copy_field(None if batch.key_id is None else str(batch.key_id))
    common = f"{batch.tenant_id}\t{batch.id}\t{batch.tier.value}\t{_copy_field(batch.request_id)}\t{key_id}"
    models, lanes = Counter[str](), Counter[tuple[str, str, int]]()
    placeholders: dict[tuple[str, str, int], str] = {}
    jobs, images, reusing = list[str](), list[str](), list[tuple[Sequence[UUID], PlannedJob]]()
    for at, job in enumerate(planned, position):
        job_id, count, lane = uuid7(), len(job.seeds), job.template.lane
        jobs.append(
            f"{job_id}\t{common}\t{at}\t{_copy_field(job.json)}\t{count}\t{count}\t{_copy_field(job.origin or None)}\n"
        )
        models[job.template.recipe.model] += 1
        lanes[lane] += count
        lane_id = placeholders.setdefault(lane, _placeholder(len(placeholders)))
        image_ids = [uuid7() for _ in range(count)]
        images.extend(f"{image_id}\t{job_id}\t{lane_id}\t{index}\n" for index, image_id in enumerate(image_ids))
        if batch.plan.reuse:
            reusing.append(([UUID(int=image_id.int) for image_id in image_ids], job))
    return JobRows(models, lanes, "".join(jobs), "".join(images), reusing)


def expand(
    connection: Connection,
    batch: Batch,
    chunk: Chunk,
    rows: JobRows,
    limits: Limits = UNLIMITED,
    loras: Mapping[str, str] = NO_LORAS,
) -> Linked | None:
    """Insert the jobs of a chunk, and give them the pictures that are to be reused: what got one.

    None if another worker was first, or the batch was cancelled. `loras`: the sha256 of all, by name.
    """
    locked = connection.execute(LOCK_TO_EXPAND, fence_params(batch)).first()
    if locked is None:
        return None
    candidates = _candidates(connection, rows, loras)
    lanes = make_lanes(
        connection,
        [
            Lane(batch.tenant_id, batch.tier, model, compatibility, batch.id, locked.paused_at is not None, code)
            for compatibility, model, code in rows.lanes
        ],
    )
    images = rows.images
    for index, lane_id in enumerate(lanes):
        images = images.replace(_placeholder(index), str(lane_id))
    _copy(connection, COPY_JOBS, rows.jobs)
    _copy(connection, COPY_IMAGES, images)
    # Last: until the COMMIT, these locks stop other submissions of the tenant, and publishes are counted later.
    count_day(connection, batch.tenant_id, limits, sum(rows.lanes.values()))
    connection.execute(OPEN_LANES, {"lanes": lanes, "images": list(rows.lanes.values())})
    added = {"jobs": sum(rows.models.values()), "images": sum(rows.lanes.values())}
    connection.execute(EXPANDED, fence_params(batch) | progress_params(chunk) | added)
    return reuse.link(connection, batch.tenant_id, candidates)


def _candidates(connection: Connection, rows: JobRows, loras: Mapping[str, str]) -> list[Candidate]:
    if not rows.reusing:
        return []
    renderers = reuse.renderers(connection, rows.models, loras)
    return [
        candidate
        for image_ids, job in rows.reusing
        if (drawn_with := renderers.get(job.template.recipe.model))
        for candidate in reuse.candidates(image_ids, job.recipe, drawn_with)
    ]


# The text for COPY: a line per row, tabs between the fields, \N for null


def _placeholder(index: int) -> str:
    """The text in place of a lane's id, until it is known. Nothing else in the rows of images has its form."""
    return f"<{index}>"


def _copy_field(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _copy(connection: Connection, statement: str, rows: str) -> None:
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(rows)


# Insert jobs.
COPY_JOBS = """
    COPY jobs (id, tenant_id, batch_id, tier, request_id, key_id, position, recipe, count, open, origin)
    FROM STDIN
"""

# Insert images.
COPY_IMAGES = "COPY images (id, job_id, lane_id, index) FROM STDIN"

# Lock a batch whose next chunk is still this one; it may be paused.
LOCK_TO_EXPAND = text(f"""
    SELECT paused_at FROM batches WHERE {FENCE} AND checked_at IS NOT NULL AND expanded_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
""")

# Move a batch behind an expanded chunk; behind the last one it is expanded.
EXPANDED = text(f"""
    UPDATE batches SET "offset" = :offset, line = :line, jobs = jobs + :jobs, images = images + :images,
        expanded_at = CASE WHEN :is_last THEN now() END, touched_at = now(), {CHUNK_PROGRESS}
    WHERE {FENCE}
""")

# Count the new images in their lanes.
OPEN_LANES = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM lanes WHERE id = ANY(cast(:lanes AS bigint[])) ORDER BY id FOR NO KEY UPDATE)
    UPDATE lanes SET open = lanes.open + added.images
    FROM unnest(cast(:lanes AS bigint[]), cast(:images AS bigint[])) AS added(id, images) JOIN locked USING (id)
    WHERE lanes.id = added.id
""")
