"""The timeline of a job, and its retries.

Jobs themselves are `api.queries.jobs`'s, and which match `common.queue.search`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import JobState


@dataclass(frozen=True)
class Lease:
    """A try at images of a job. Who made it is known until a day after that worker stopped."""

    id: UUID
    worker_id: UUID
    worker: str | None
    worker_class: Mapping[str, Any] | None
    images: Sequence[int]  # their places in the job
    company: int  # the images of the microbatch, of whatever jobs
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str | None  # published, released, lost; None: it is held now


@dataclass(frozen=True)
class Retry:
    """A job that was made from the recipe of another, and names it as its parent."""

    id: UUID
    state: JobState


def find_leases(connection: Connection, tenant_id: UUID, job_id: UUID, limit: int = 100) -> Sequence[Lease]:
    """The newest leases of a job, oldest first. Empty when the tenant has no such job."""
    rows = connection.execute(LEASES, {"tenant": tenant_id, "job": job_id, "limit": limit})
    return [Lease(**row._mapping) for row in rows][::-1]


def find_retries(connection: Connection, tenant_id: UUID, job_id: UUID, limit: int = 20) -> Sequence[Retry]:
    """The newest retries of a job, oldest first. Empty when the tenant has no such job."""
    rows = connection.execute(RETRIES, {"tenant": tenant_id, "job": job_id, "limit": limit})
    return [Retry(row.id, JobState(row.state)) for row in rows][::-1]


LEASES = text("""
    WITH mine AS MATERIALIZED (
        SELECT images.id, images.index FROM images JOIN jobs ON jobs.id = images.job_id
        WHERE jobs.id = :job AND jobs.tenant_id = :tenant)
    SELECT leases.id, leases.worker_id, workers.name AS worker, workers.class AS worker_class,
           ARRAY(SELECT index FROM mine WHERE mine.id = ANY(leases.image_ids) ORDER BY index) AS images,
           cardinality(leases.image_ids) AS company,
           leases.claimed_at, leases.started_at, leases.ended_at, leases.outcome
    FROM leases LEFT JOIN workers ON workers.id = leases.worker_id
    WHERE leases.image_ids && ARRAY(SELECT id FROM mine)
    ORDER BY leases.claimed_at DESC, leases.id DESC LIMIT :limit
""")

RETRIES = text("""
    SELECT id, state FROM jobs WHERE parent_id = :job AND tenant_id = :tenant ORDER BY id DESC LIMIT :limit
""")
