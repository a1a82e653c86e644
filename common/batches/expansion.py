"""Expansion: a chunk of a batch's prompts as rows, by COPY. Other makers of jobs: `jobs.submit`, and the retries.

COPY's text is written by hand: the driver takes ten times as long for a row, and a batch has a million of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from uuid_utils import uuid7

from common.batches.lifecycle import FENCE, Batch, Chunk, fence_params, progress_params
from common.batches.plan import PlannedJob
from common.queue.jobs import Lane, make_lanes


@dataclass(frozen=True)
class JobRows:
    """What is to be copied: so many jobs of each model, so many images by (compatibility, model).

    `images` names lanes by their place in `lanes`.
    """

    models: Mapping[str, int]
    lanes: Mapping[tuple[str, str], int]
    jobs: str
    images: str


def build_rows(batch: Batch, planned: Iterable[PlannedJob], place: int) -> JobRows:
    """The rows of jobs from this place on. Asks nobody: the next chunk is made while Postgres takes the last one."""
    same = f"{batch.tenant_id}\t{batch.id}\t{batch.tier.value}\t{_copy_field(batch.request_id)}"
    models, lanes = Counter[str](), Counter[tuple[str, str]]()
    marks: dict[tuple[str, str], str] = {}
    jobs, images = list[str](), list[str]()
    for at, one in enumerate(planned, place):
        job_id, count, lane = uuid7(), len(one.seeds), one.base.lane
        jobs.append(f"{job_id}\t{same}\t{at}\t{_copy_field(one.json)}\t{count}\t{count}\n")
        models[one.base.recipe.model] += 1
        lanes[lane] += count
        mark = marks.setdefault(lane, _placeholder(len(marks)))
        images.extend(f"{uuid7()}\t{job_id}\t{mark}\t{index}\n" for index in range(count))
    return JobRows(models, lanes, "".join(jobs), "".join(images))


def expand(connection: Connection, batch: Batch, chunk: Chunk, rows: JobRows) -> bool:
    """Insert the jobs of a chunk. False if somebody else was faster, or nobody wants them any more."""
    locked = connection.execute(LOCK_TO_EXPAND, fence_params(batch)).first()
    if locked is None:
        return False
    lanes = make_lanes(
        connection,
        [
            Lane(batch.tenant_id, batch.tier, model, compatibility, batch.id, closed=locked.paused_at is not None)
            for compatibility, model in rows.lanes
        ],
    )
    images = rows.images
    for place, lane_id in enumerate(lanes):
        images = images.replace(_placeholder(place), str(lane_id))
    _copy(connection, COPY_JOBS, rows.jobs)
    _copy(connection, COPY_IMAGES, images)
    # Only now: until the COMMIT nobody can publish in these lanes.
    connection.execute(OPEN_LANES, {"lanes": lanes, "images": list(rows.lanes.values())})
    added = {"jobs": sum(rows.models.values()), "images": sum(rows.lanes.values())}
    connection.execute(EXPANDED, fence_params(batch) | progress_params(chunk) | added)
    return True


# COPY's text: a line a row, tabs between the fields, \N for null


def _placeholder(place: int) -> str:
    """Stands for a lane that has no id yet; nothing else in the rows of images looks like it."""
    return f"<{place}>"


def _copy_field(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _copy(connection: Connection, statement: str, rows: str) -> None:
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(rows)


COPY_JOBS = """
    COPY jobs (id, tenant_id, batch_id, tier, request_id, position, recipe, count, open) FROM STDIN
"""

COPY_IMAGES = "COPY images (id, job_id, lane_id, index) FROM STDIN"

LOCK_TO_EXPAND = text(f"""
    SELECT paused_at FROM batches WHERE {FENCE} AND checked_at IS NOT NULL AND expanded_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
""")

EXPANDED = text(f"""
    UPDATE batches SET "offset" = :offset, line = :line, jobs = jobs + :jobs, images = images + :images,
        expanded_at = CASE WHEN :is_last THEN now() END, touched_at = now()
    WHERE {FENCE}
""")

OPEN_LANES = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM lanes WHERE id = ANY(cast(:lanes AS bigint[])) ORDER BY id FOR NO KEY UPDATE)
    UPDATE lanes SET open = lanes.open + added.images
    FROM unnest(cast(:lanes AS bigint[]), cast(:images AS bigint[])) AS added(id, images) JOIN locked USING (id)
    WHERE lanes.id = added.id
""")
