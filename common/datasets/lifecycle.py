"""Datasets: what is exported from batches, written by control workers one shard after the other.

    submit ──► waiting ──► writing ──► ready       all its files are in storage
                  └───────────┴──────► failed      its batch has no picture

Whoever is at it has taken it: every change but the first names his hand, so one who was slow and has been overtaken
changes nothing. Nothing here writes a file; how one looks is `layout`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from common.datasets.layout import DatasetPlan
from common.db import new_id
from common.enums import ImageState
from common.errors import NotFound
from common.recipes.recipe import canonical_json


@dataclass(frozen=True)
class Dataset:
    """What writing a dataset needs to know, as of now: the next shard is number `shard` of split `split`."""

    id: UUID
    batch_id: UUID
    retries: Sequence[UUID]  # of the batch, whose pictures stand in for those that failed
    plan: DatasetPlan
    split: int
    shard: int
    position: int
    shards: int
    images: int
    owner_id: UUID

    @property
    def split_name(self) -> str | None:
        """None when all of them are written."""
        return self.plan.names[self.split] if self.split < len(self.plan.names) else None


@dataclass(frozen=True)
class Reach:
    """How far a batch has come: the images of prompts of positions below `position` have all ended."""

    position: int
    has_ended: bool


@dataclass(frozen=True)
class Job:
    """A job that has ended, with what has become of its images."""

    id: UUID
    position: int
    recipe: Mapping[str, Any]
    created_at: datetime
    images: Sequence[Mapping[str, Any]]  # rows of the table, by column


@dataclass(frozen=True)
class Step:
    """What one step has written, and where the next one begins: in the same split, or in the next."""

    position: int
    ends_split: bool
    images: int
    pictures: int


def submit(
    connection: Connection,
    tenant_id: UUID,
    batch_id: UUID,
    plan: DatasetPlan,
    *,
    request_id: str | None = None,
    dataset_id: UUID | None = None,
) -> UUID:
    """Insert a dataset, to be written. Raises NotFound when the tenant has no such batch."""
    dataset_id = dataset_id or new_id()
    parameters = {
        "dataset": dataset_id,
        "tenant": tenant_id,
        "batch": batch_id,
        "plan": canonical_json(plan.model_dump(mode="json")),
        "request": request_id,
    }
    if connection.execute(INSERT, parameters).rowcount == 0:
        raise NotFound(f"There is no batch {batch_id}.")
    return dataset_id


def unattended(connection: Connection, silence_s: float, rest_s: float) -> list[UUID]:
    """Those to be written that nobody has taken and that have rested, or whose taker was silent for that long."""
    return list(connection.execute(UNATTENDED, {"silence": silence_s, "rest": rest_s}).scalars())


def of_batches(connection: Connection, batch_ids: Sequence[UUID]) -> list[UUID]:
    """Those of these batches that are to be written."""
    return list(connection.execute(OF_BATCHES, {"batches": list(batch_ids)}).scalars()) if batch_ids else []


def acquire(connection: Connection, dataset_id: UUID, silence_s: float) -> Dataset | None:
    """Take a dataset, to write on; None if it has ended or somebody is at it."""
    row = connection.execute(ACQUIRE, {"dataset": dataset_id, "owner": new_id(), "silence": silence_s}).first()
    return _dataset(row) if row else None


def release(connection: Connection, dataset: Dataset) -> bool:
    """Leave it to the next one. This and the others below: False for one who was overtaken."""
    return _changed(connection, RELEASE, dataset)


def note_written(connection: Connection, dataset: Dataset, images: int) -> bool:
    """Note that so many images of the shard in hand are done."""
    return _changed(connection, WRITTEN, dataset, images=images)


def advance(connection: Connection, dataset: Dataset, step: Step) -> Dataset | None:
    """Note that a shard, or a split, is written; the dataset as it is then. None for one who was overtaken."""
    row = connection.execute(ADVANCE, {"dataset": dataset.id, "owner": dataset.owner_id, **vars(step)}).first()
    return _dataset(row) if row else None


def finish(connection: Connection, dataset: Dataset, digest: str, files: int, size: int) -> bool:
    """Note that all is written."""
    return _changed(connection, FINISH, dataset, digest=digest, files=files, bytes=size)


def fail(connection: Connection, dataset: Dataset, code: str, message: str) -> bool:
    """End a dataset that cannot be written."""
    return _changed(connection, FAIL, dataset, code=code, message=message)


def reach(connection: Connection, dataset: Dataset) -> Reach:
    """How far its batch has come, from where the dataset stands: nowhere while one of its retries goes on."""
    here = {"batch": dataset.batch_id, "retries": list(dataset.retries), "position": dataset.position}
    row = connection.execute(REACH, here).one()
    return Reach(row.position, row.has_ended)


def jobs(connection: Connection, dataset: Dataset, start: int, until: int, limit: int) -> list[Job]:
    """The next jobs of its batch from a place on, those of places below `until`, in order."""
    page = {"batch": dataset.batch_id, "start": start, "until": until, "limit": limit}
    found = [
        Job(row.id, row.position, row.recipe, row.created_at, row.images) for row in connection.execute(JOBS, page)
    ]
    return _with_heirs(connection, dataset, found) if dataset.retries else found


def origin(connection: Connection, dataset: Dataset) -> dict[str, Any]:
    """What a dataset says of its batch."""
    found = dict(connection.execute(ORIGIN, {"batch": dataset.batch_id}).mappings().one())
    return found | {"retries": list(map(str, dataset.retries))} if dataset.retries else found


def _with_heirs(connection: Connection, dataset: Dataset, found: list[Job]) -> list[Job]:
    """These jobs with what failed of them as the retries of their batch have drawn it.

    A generation at a time: in one recursive statement the planner may choose to read all jobs there are.
    """
    generation = [job.id for job in found if any(image["state"] == ImageState.FAILED for image in job.images)]
    ancestors = {job_id: job_id for job_id in generation}
    while generation:
        heirs = connection.execute(RETRY_JOBS, {"parents": generation, "retries": list(dataset.retries)}).all()
        ancestors |= {heir.id: ancestors[heir.parent_id] for heir in heirs}
        generation = [heir.id for heir in heirs]
    redrawn: dict[tuple[UUID, int], Mapping[str, Any]] = {}
    for row in connection.execute(RETRY_IMAGES, {"jobs": [heir for heir in ancestors if ancestors[heir] != heir]}):
        redrawn.setdefault((ancestors[row.job_id], row.image["index"]), row.image)

    def best(job: Job, image: Mapping[str, Any]) -> Mapping[str, Any]:
        return redrawn.get((job.id, image["index"]), image) if image["state"] == ImageState.FAILED else image

    return [replace(job, images=[best(job, image) for image in job.images]) for job in found]


def _changed(connection: Connection, statement: TextClause, dataset: Dataset, **values: Any) -> bool:
    mine = {"dataset": dataset.id, "owner": dataset.owner_id}
    return connection.execute(statement, mine | values).rowcount > 0


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        batch_id=row.batch_id,
        retries=row.retries,
        plan=DatasetPlan.model_validate(row.plan),
        split=row.split,
        shard=row.shard,
        position=row.position,
        shards=row.shards,
        images=row.images,
        owner_id=row.owner_id,
    )


# One statement each. MINE is the fence: whoever finds another hand there was overtaken.

MINE = "id = :dataset AND owner_id = :owner AND finished_at IS NULL"

INSERT = text("""
    WITH RECURSIVE retries AS (
        SELECT id FROM batches WHERE parent_id = :batch
        UNION ALL SELECT batches.id FROM batches JOIN retries ON batches.parent_id = retries.id)
    INSERT INTO datasets (id, tenant_id, batch_id, retries, plan, request_id)
    SELECT :dataset, tenant_id, id, ARRAY(SELECT id FROM retries ORDER BY id), cast(:plan AS jsonb), :request
    FROM batches WHERE id = :batch AND tenant_id = :tenant
""")

UNATTENDED = text("""
    SELECT id FROM datasets
    WHERE finished_at IS NULL
        AND touched_at < now() - make_interval(secs => CASE WHEN owner_id IS NULL THEN :rest ELSE :silence END)
    ORDER BY touched_at LIMIT 100
""")

OF_BATCHES = text("""
    SELECT id FROM datasets
    WHERE finished_at IS NULL AND (batch_id = ANY(:batches) OR retries && cast(:batches AS uuid[]))
""")

ACQUIRE = text("""
    UPDATE datasets SET owner_id = :owner, touched_at = now()
    WHERE id = :dataset AND finished_at IS NULL
        AND (owner_id IS NULL OR touched_at < now() - make_interval(secs => :silence))
    RETURNING *
""")

RELEASE = text(f"UPDATE datasets SET owner_id = NULL, touched_at = now() WHERE {MINE}")

WRITTEN = text(f"""
    UPDATE datasets SET written = :images, touched_at = now(),
        begun_at = CASE WHEN :images > 0 THEN coalesce(begun_at, now()) ELSE begun_at END
    WHERE {MINE}
""")

ADVANCE = text(f"""
    UPDATE datasets SET
        position = CASE WHEN :ends_split THEN 0 ELSE :position END,
        split = split + CASE WHEN :ends_split THEN 1 ELSE 0 END,
        shard = CASE WHEN :ends_split THEN 0 ELSE shard + 1 END,
        shards = shards + CASE WHEN :images > 0 THEN 1 ELSE 0 END,
        images = images + :images, pictures = pictures + :pictures,
        written = 0, touched_at = now(), begun_at = coalesce(begun_at, now())
    WHERE {MINE} RETURNING *
""")

FINISH = text(f"""
    UPDATE datasets SET digest = :digest, files = :files, bytes = :bytes,
        finished_at = now(), touched_at = now(), owner_id = NULL
    WHERE {MINE}
""")

FAIL = text(f"""
    UPDATE datasets SET error_code = :code, error_message = :message,
        finished_at = now(), touched_at = now(), owner_id = NULL
    WHERE {MINE}
""")

REACH = text("""
    SELECT finished_at IS NOT NULL AND NOT is_retried AS has_ended,
           CASE WHEN is_retried THEN :position
                WHEN finished_at IS NOT NULL THEN jobs
                ELSE coalesce((SELECT position FROM jobs WHERE batch_id = :batch AND position >= :position
                               AND finished_at IS NULL ORDER BY position LIMIT 1), jobs) END AS position
    FROM batches CROSS JOIN (
        SELECT EXISTS (SELECT FROM batches WHERE id = ANY(:retries) AND finished_at IS NULL) AS is_retried) AS retry
    WHERE id = :batch
""")

IMAGE = """
    jsonb_build_object(
        'id', id, 'job_id', job_id, 'index', index, 'state', state, 'key', key, 'sha256', sha256, 'bytes', bytes,
        'error_code', error_code, 'render_ms', render_ms)
"""

JOBS = text(f"""
    SELECT page.id, page.position, page.recipe, page.created_at, images.all AS images
    FROM (SELECT id, position, recipe, created_at FROM jobs
          WHERE batch_id = :batch AND position >= :start AND position < :until ORDER BY position LIMIT :limit) AS page
    CROSS JOIN LATERAL (SELECT jsonb_agg({IMAGE} ORDER BY index) AS all FROM images WHERE job_id = page.id) AS images
    ORDER BY page.position
""")

RETRY_JOBS = text("""
    SELECT id, parent_id FROM jobs WHERE parent_id = ANY(:parents) AND ARRAY[batch_id] <@ cast(:retries AS uuid[])
""")

RETRY_IMAGES = text(f"""
    SELECT job_id, {IMAGE} AS image FROM images
    WHERE job_id = ANY(:jobs) AND state IN ('stored', 'flagged') ORDER BY state, id
""")

ORIGIN = text("""
    SELECT batches.id, name, plan, prompts, skipped, jobs, images, batches.created_at, uploads.sha256 AS upload_sha256
    FROM batches JOIN uploads ON uploads.id = upload_id WHERE batches.id = :batch
""")


EXPORT_SILENCE_S = 30.0  # more than one who writes is ever silent
