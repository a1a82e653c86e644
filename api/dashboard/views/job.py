"""One job: its state, its recipe and images, its timeline and retries, and what can be done to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import Connection, text

from api.dashboard.rendering import render_notice
from api.dashboard.sessions import ActorAmongAll, CurrentActor, CurrentVisitor
from api.dashboard.snippets import command_line, curl, draft_of
from api.dashboard.view import Read, view
from api.deps import BaseUrl, State
from api.queries.jobs import find_job, with_progress
from api.services import jobs
from common.db import transaction
from common.enums import JobState, Tier

router = APIRouter()


@view(router, "/jobs/{job_id}", "job.html")
def show_job(job_id: UUID, visitor: CurrentVisitor, state: State, base_url: BaseUrl) -> Read:
    tenant_id = visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            job = find_job(connection, tenant_id, job_id, base_url)
            leases = find_leases(connection, tenant_id, job_id)
            retries = find_retries(connection, tenant_id, job_id)
        draft = draft_of(job)
        return {
            "job": with_progress(state.broker, [job])[0],
            "leases": leases,
            "retries": retries,
            "tiers": [tier for tier in visitor.caller.tiers if tier != job.tier],
            "curl": curl(draft, base_url),
            "command_line": command_line(draft, base_url),
        }

    return read


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, job_id: UUID, actor: ActorAmongAll, state: State) -> Response:
    jobs.cancel(state, actor, job_id)
    return render_notice(request, "job_notice.html", action="cancel")


@router.post("/jobs/{job_id}/retry")
def retry_job(request: Request, job_id: UUID, visitor: CurrentActor, state: State) -> Response:
    retry_id = jobs.retry(state, visitor.caller, job_id)
    return render_notice(request, "job_notice.html", action="retry", retry_id=retry_id)


@router.post("/jobs/{job_id}/tier")
def change_tier(
    request: Request, job_id: UUID, tier: Annotated[Tier, Form()], visitor: CurrentActor, state: State
) -> Response:
    jobs.change_tier(state, visitor.caller, job_id, tier)
    return render_notice(request, "job_notice.html", action="tier", tier=tier)


@dataclass(frozen=True)
class Lease:
    """One claim of images of the job. The worker is None from a day after it stopped."""

    id: UUID
    worker_id: UUID
    worker: str | None
    worker_class: Mapping[str, Any] | None
    images: Sequence[int]  # their indexes in the job
    microbatch_size: int  # in images, of all jobs
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str | None  # published, released or lost; None while the lease is held


@dataclass(frozen=True)
class Retry:
    """A job that repeats the recipe of this one, and names it as its parent."""

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


# Read the newest leases that held images of a job.
LEASES = text("""
    WITH mine AS MATERIALIZED (
        SELECT images.id, images.index FROM images JOIN jobs ON jobs.id = images.job_id
        WHERE jobs.id = :job AND jobs.tenant_id = :tenant)
    SELECT leases.id, leases.worker_id, workers.name AS worker, workers.class AS worker_class,
           ARRAY(SELECT index FROM mine WHERE mine.id = ANY(leases.image_ids) ORDER BY index) AS images,
           cardinality(leases.image_ids) AS microbatch_size,
           leases.claimed_at, leases.started_at, leases.ended_at, leases.outcome
    FROM leases LEFT JOIN workers ON workers.id = leases.worker_id
    WHERE leases.image_ids && ARRAY(SELECT id FROM mine)
    ORDER BY leases.claimed_at DESC, leases.id DESC LIMIT :limit
""")

# Read the newest jobs that name a job as their parent.
RETRIES = text("""
    SELECT id, state FROM jobs WHERE parent_id = :job AND tenant_id = :tenant ORDER BY id DESC LIMIT :limit
""")
