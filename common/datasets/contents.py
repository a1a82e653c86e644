"""What a dataset contains: the jobs of its batch that have ended, with the images of its retries. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.datasets.layout import COLUMNS_OF_CODE_8, COLUMNS_SINCE, Columns
from common.datasets.lifecycle import Dataset
from common.enums import ImageState
from common.schema import shown


@dataclass(frozen=True)
class FinishedPrefix:
    """How far a batch has finished: the images of all prompts at positions below `position` have ended."""

    position: int
    has_ended: bool  # the batch and its retries


@dataclass(frozen=True)
class FinishedJob:
    """A job that has ended, with its images."""

    id: UUID
    position: int
    recipe: Mapping[str, Any]
    origin: Mapping[str, Any]
    created_at: datetime
    images: Sequence[Mapping[str, Any]]  # rows of the table, by column


def finished_prefix(connection: Connection, dataset: Dataset) -> FinishedPrefix:
    """How far the batch has finished; not past the dataset's own position while one of its retries is running."""
    parameters = {"batch": dataset.batch_id, "retries": list(dataset.retries), "position": dataset.position}
    row = connection.execute(FINISHED_PREFIX, parameters).one()
    return FinishedPrefix(row.position, row.has_ended)


def finished_jobs(connection: Connection, dataset: Dataset, start: int, until: int, limit: int) -> list[FinishedJob]:
    """The first `limit` jobs of the batch at positions from `start` to below `until`, in order."""
    page = {"batch": dataset.batch_id, "start": start, "until": until, "limit": limit}
    rows = connection.execute(FINISHED_JOBS, page)
    found = [
        FinishedJob(row.id, row.position, row.recipe, row.origin or {}, row.created_at, row.images) for row in rows
    ]
    return _with_retries(connection, dataset, found) if dataset.retries else found


def columns(connection: Connection, dataset: Dataset) -> Columns:
    """The columns of a dataset. Older code may have begun it, which did not know all of them."""
    batch = connection.execute(KEPT, {"batch": dataset.batch_id}).one()
    if max(dataset.needs_code, batch.needs_code) < COLUMNS_SINCE:
        return Columns(COLUMNS_OF_CODE_8)
    return Columns(kinds=dict(batch.kept), has_template_vars=bool(batch.template))


def batch_facts(connection: Connection, dataset: Dataset) -> dict[str, Any]:
    """What the card and the manifest say about the batch, by name."""
    found = dict(connection.execute(BATCH_FACTS, {"batch": dataset.batch_id}).mappings().one())
    return found | {"retries": list(map(str, dataset.retries))} if dataset.retries else found


def _with_retries(connection: Connection, dataset: Dataset, found: list[FinishedJob]) -> list[FinishedJob]:
    """These jobs; the images that failed are replaced by those of the dataset's retries.

    One query a generation: for a recursive statement the planner may choose to scan all jobs.
    """
    generation = [job.id for job in found if any(image["state"] == ImageState.FAILED for image in job.images)]
    ancestors = {job_id: job_id for job_id in generation}
    while generation:
        children = connection.execute(RETRY_JOBS, {"parents": generation, "retries": list(dataset.retries)}).all()
        ancestors |= {child.id: ancestors[child.parent_id] for child in children}
        generation = [child.id for child in children]
    replacements: dict[tuple[UUID, int], Mapping[str, Any]] = {}
    for row in connection.execute(RETRY_IMAGES, {"jobs": [job for job in ancestors if ancestors[job] != job]}):
        replacements.setdefault((ancestors[row.job_id], row.image["index"]), row.image)

    def best(job: FinishedJob, image: Mapping[str, Any]) -> Mapping[str, Any]:
        return replacements.get((job.id, image["index"]), image) if image["state"] == ImageState.FAILED else image

    return [replace(job, images=[best(job, image) for image in job.images]) for job in found]


# The first position from :position on whose job has not ended, or the number of jobs when there is none.
FINISHED_PREFIX = text("""
    SELECT finished_at IS NOT NULL AND NOT is_retried AS has_ended,
           CASE WHEN is_retried THEN :position
                WHEN finished_at IS NOT NULL THEN jobs
                ELSE coalesce((SELECT position FROM jobs WHERE batch_id = :batch AND position >= :position
                               AND finished_at IS NULL ORDER BY position LIMIT 1), jobs) END AS position
    FROM batches CROSS JOIN (
        SELECT EXISTS (SELECT FROM batches WHERE id = ANY(:retries) AND finished_at IS NULL) AS is_retried) AS retry
    WHERE id = :batch
""")

# One whose picture is deleted is in the tables, as the failed ones are.
IMAGE = """
    jsonb_build_object(
        'id', id, 'job_id', job_id, 'index', index,
        'state', CASE WHEN picture_deleted_at IS NULL THEN state ELSE 'failed' END,
        'key', CASE WHEN picture_deleted_at IS NULL THEN key END, 'sha256', sha256, 'bytes', bytes,
        'error_code', CASE WHEN picture_deleted_at IS NULL THEN error_code ELSE 'picture_deleted' END,
        'render_ms', render_ms)
"""

# A page of the batch's jobs in the order of their positions, each with its images as JSON.
FINISHED_JOBS = text(f"""
    SELECT page.id, page.position, page.recipe, page.origin, page.created_at, coalesce(images.all, '[]') AS images
    FROM (SELECT id, position, recipe, origin, created_at FROM jobs
          WHERE batch_id = :batch AND position >= :start AND position < :until ORDER BY position LIMIT :limit) AS page
    CROSS JOIN LATERAL (SELECT jsonb_agg({IMAGE} ORDER BY index) AS all FROM images WHERE job_id = page.id) AS images
    ORDER BY page.position
""")

# The jobs of the dataset's retries whose parents these are.
RETRY_JOBS = text(f"""
    SELECT id, parent_id FROM jobs
    WHERE parent_id = ANY(:parents) AND ARRAY[batch_id] <@ cast(:retries AS uuid[]) AND {shown()}
""")

# The rendered images of these jobs, the stored ones first.
RETRY_IMAGES = text(f"""
    SELECT job_id, {IMAGE} AS image FROM images
    WHERE job_id = ANY(:jobs) AND state IN ('stored', 'flagged') ORDER BY state, id
""")

# What a batch's jobs keep of their rows, and whether they have variables of a template.
KEPT = text("SELECT kept, plan -> 'template' AS template, needs_code FROM batches WHERE id = :batch")

# The batch's row, with the checksum of its prompt file.
BATCH_FACTS = text("""
    SELECT batches.id, name, plan, prompts, skipped, jobs, images, batches.created_at, uploads.sha256 AS upload_sha256
    FROM batches JOIN uploads ON uploads.id = upload_id WHERE batches.id = :batch
""")
