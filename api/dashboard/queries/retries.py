"""The retries of a job: jobs that were made from its recipe, and name it as their parent."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.states import JobState


@dataclass(frozen=True)
class Retry:
    id: UUID
    state: JobState


def find_retries(connection: Connection, tenant_id: UUID, job_id: UUID, limit: int = 20) -> Sequence[Retry]:
    """The newest of them, oldest first. None when the tenant has no such job."""
    rows = connection.execute(RETRIES, {"tenant": tenant_id, "job": job_id, "limit": limit})
    return [Retry(row.id, JobState(row.state)) for row in rows][::-1]


RETRIES = text("""
    SELECT id, state FROM jobs WHERE parent_id = :job AND tenant_id = :tenant ORDER BY id DESC LIMIT :limit
""")
