"""Expansion: a chunk of a batch's prompts as rows, by COPY. With `jobs.submit`, the only code that makes jobs.

COPY's text is written by hand: the driver takes ten times as long for a row, and a batch has a million of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.batches import HERE, Batch, Chunk, here, there
from common.db import new_id
from common.recipe import Recipe

BLOCK_ROWS = 200


def expand(connection: Connection, batch: Batch, chunk: Chunk) -> bool:
    """Insert the jobs of a chunk. False if somebody else was faster, or nobody wants them any more."""
    locked = connection.execute(LOCK_TO_EXPAND, here(batch)).first()
    if locked is None:
        return False
    drawn = chunk.recipes
    names = [recipe.compatibility for recipe in drawn]
    lanes = _lanes(connection, batch, zip(names, drawn, strict=True), closed=locked.paused_at is not None)
    ids, lane_ids = [new_id() for _ in drawn], [lanes[name] for name in names]
    _copy(connection, COPY_JOBS, _job_lines(batch, chunk, ids))
    _copy(connection, COPY_IMAGES, _image_lines(ids, lane_ids, drawn))
    opened = Counter[int]()
    for lane_id, recipe in zip(lane_ids, drawn, strict=True):
        opened[lane_id] += recipe.count
    # Only now: until the COMMIT nobody can publish in these lanes.
    connection.execute(OPEN_LANES, {"lanes": list(opened), "images": list(opened.values())})
    added = {"jobs": len(drawn), "images": opened.total()}
    connection.execute(EXPANDED, here(batch) | there(chunk) | added)
    return True


def _lanes(
    connection: Connection, batch: Batch, recipes: Iterable[tuple[str, Recipe]], *, closed: bool
) -> dict[str, int]:
    """The lanes of these recipes, by compatibility, made where there are none."""
    found = {}
    for compatibility, model in sorted({(name, recipe.model) for name, recipe in recipes}):
        lane = {
            "tenant": batch.tenant_id,
            "tier": batch.tier.value,
            "model": model,
            "compatibility": compatibility,
            "batch": batch.id,
            "closed": closed,
        }
        connection.execute(MAKE_LANE, lane)
        found[compatibility] = int(connection.execute(FIND_LANE, lane).scalar_one())
    return found


# COPY's text: a line a row, tabs between the fields, \N for null


def _job_lines(batch: Batch, chunk: Chunk, ids: Sequence[UUID]) -> Iterator[str]:
    same = f"{batch.tenant_id}\t{batch.id}\t{batch.tier.value}\t{_field(batch.request_id)}"
    for place, (job_id, recipe) in enumerate(zip(ids, chunk.recipes, strict=True), batch.jobs):
        count, json = recipe.count, _field(recipe.model_dump_json())
        yield f"{job_id}\t{same}\t{place}\t{json}\t{count}\t{count}\n"


def _image_lines(ids: Sequence[UUID], lane_ids: Sequence[int], recipes: Sequence[Recipe]) -> Iterator[str]:
    for job_id, lane_id, recipe in zip(ids, lane_ids, recipes, strict=True):
        for index in range(recipe.count):
            yield f"{new_id()}\t{job_id}\t{lane_id}\t{index}\n"


def _field(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _copy(connection: Connection, statement: str, lines: Iterator[str]) -> None:
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        while block := "".join(islice(lines, BLOCK_ROWS)):
            copy.write(block)


COPY_JOBS = """
    COPY jobs (id, tenant_id, batch_id, tier, request_id, place, recipe, count, open) FROM STDIN
"""

COPY_IMAGES = "COPY images (id, job_id, lane_id, index) FROM STDIN"

LOCK_TO_EXPAND = text(f"""
    SELECT paused_at FROM batches WHERE {HERE} AND checked_at IS NOT NULL AND expanded_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
""")

EXPANDED = text(f"""
    UPDATE batches SET "offset" = :offset, line = :line, jobs = jobs + :jobs, images = images + :images,
        expanded_at = CASE WHEN :is_last THEN now() END, touched_at = now()
    WHERE {HERE}
""")

MAKE_LANE = text("""
    INSERT INTO lanes (tenant_id, tier, model, compatibility, batch_id, closed, open)
    VALUES (:tenant, cast(:tier AS tier), :model, :compatibility, :batch, :closed, 0)
    ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO NOTHING
""")

FIND_LANE = text("SELECT id FROM lanes WHERE batch_id = :batch AND compatibility = :compatibility")

OPEN_LANES = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM lanes WHERE id = ANY(cast(:lanes AS bigint[])) ORDER BY id FOR NO KEY UPDATE)
    UPDATE lanes SET open = lanes.open + added.images
    FROM unnest(cast(:lanes AS bigint[]), cast(:images AS bigint[])) AS added(id, images) JOIN locked USING (id)
    WHERE lanes.id = added.id
""")
