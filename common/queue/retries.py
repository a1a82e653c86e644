"""Many jobs retried in one statement: as `jobs.retry` does it, each becomes a new job that names its parent.

Rows are locked as everywhere: the parents, by id, by whoever calls; then lanes, by id.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.db import new_id
from common.recipes.recipe import Recipe


def parents(connection: Connection, job_ids: Sequence[UUID]) -> list[Row[Any]]:
    """Those of these jobs that have no retry yet. They are locked already, so none gets one meanwhile."""
    return list(connection.execute(PARENTS, {"jobs": list(job_ids)}))


def retry_locked(connection: Connection, found: Sequence[Row[Any]], request_id: str | None) -> list[UUID]:
    """Submit the recipes of `parents` again; the new jobs, in the same order."""
    made = [new_id() for _ in found]
    recipes = [Recipe.model_validate(row.recipe) for row in found]
    images = [(job, index) for job, recipe in zip(made, recipes, strict=True) for index in range(recipe.count)]
    again = {
        "parents": [row.id for row in found],
        "jobs": made,
        "compatibilities": [recipe.compatibility for recipe in recipes],
        "images": [new_id() for _ in images],
        "image_jobs": [job for job, _ in images],
        "indexes": [index for _, index in images],
        "request": request_id,
    }
    connection.execute(MAKE_LANES, again)
    connection.execute(RETRY, again)
    return made


PARENTS = text("""
    SELECT id, recipe, model FROM jobs
    WHERE id = ANY(:jobs) AND NOT EXISTS (SELECT FROM jobs AS child WHERE child.parent_id = jobs.id) ORDER BY id
""")

AGAIN = """
    SELECT parent.*, again.job_id, again.compatibility
    FROM unnest(cast(:parents AS uuid[]), cast(:jobs AS uuid[]), cast(:compatibilities AS text[]))
        AS again(parent_id, job_id, compatibility)
    JOIN jobs AS parent ON parent.id = again.parent_id
"""

# In one order, so that two who make the same lanes wait for each other in one direction.
MAKE_LANES = text(f"""
    INSERT INTO lanes (tenant_id, tier, model, compatibility, open)
    SELECT DISTINCT tenant_id, tier, model, compatibility, 0 FROM ({AGAIN}) AS again
    ORDER BY tenant_id, compatibility, tier
    ON CONFLICT (tenant_id, tier, compatibility, batch_id) DO NOTHING
""")

RETRY = text(f"""
    WITH again AS MATERIALIZED (
        SELECT again.*, lanes.id AS lane_id FROM ({AGAIN}) AS again
        JOIN lanes ON lanes.tenant_id = again.tenant_id AND lanes.tier = again.tier
            AND lanes.compatibility = again.compatibility AND lanes.batch_id IS NULL),
    tally AS (SELECT lane_id AS id, sum(count) AS images FROM again GROUP BY lane_id),
    lane_lock AS MATERIALIZED (
        SELECT id FROM lanes WHERE id IN (SELECT id FROM tally) ORDER BY id FOR NO KEY UPDATE),
    raised AS (
        UPDATE lanes SET open = lanes.open + tally.images
        FROM tally JOIN lane_lock ON lane_lock.id = tally.id WHERE lanes.id = tally.id),
    job AS (
        INSERT INTO jobs (id, tenant_id, parent_id, tier, recipe, warnings, count, open, request_id)
        SELECT job_id, tenant_id, id, tier, recipe, warnings, count, count, :request FROM again)
    INSERT INTO images (id, job_id, lane_id, index)
    SELECT image.id, image.job_id, again.lane_id, image.index
    FROM unnest(cast(:images AS uuid[]), cast(:image_jobs AS uuid[]), cast(:indexes AS int[]))
        AS image(id, job_id, index)
    JOIN again ON again.job_id = image.job_id
""")
