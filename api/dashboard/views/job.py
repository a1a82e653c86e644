"""One job closely: how it is, what it draws and drew, who tried, and what can be done about it."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response

from api.dashboard.queries.jobs import find_leases, find_retries
from api.dashboard.rendering import notice
from api.dashboard.sessions import TheActor, TheVisitor
from api.dashboard.snippets import command_line, curl, draft_of
from api.dashboard.view import Read, view
from api.deps import BaseUrl, State
from api.queries.jobs import find_job, with_progress
from api.services import jobs
from common.db import transaction
from common.enums import Tier

router = APIRouter()


@view(router, "/jobs/{job_id}", "job.html")
def show_job(job_id: UUID, visitor: TheVisitor, farm: State, base_url: BaseUrl) -> Read:
    tenant_id = visitor.caller.tenant_id

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            job = find_job(connection, tenant_id, job_id, base_url)
            leases = find_leases(connection, tenant_id, job_id)
            retries = find_retries(connection, tenant_id, job_id)
        draft = draft_of(job)
        return {
            "job": with_progress(farm.broker, [job])[0],
            "leases": leases,
            "retries": retries,
            "tiers": [tier for tier in Tier if tier != job.tier],
            "curl": curl(draft, base_url),
            "command_line": command_line(draft, base_url),
        }

    return look


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, job_id: UUID, visitor: TheActor, farm: State) -> Response:
    jobs.cancel(farm, visitor.caller, job_id)
    return notice(request, "job_changed.html", deed="cancel")


@router.post("/jobs/{job_id}/retry")
def retry_job(request: Request, job_id: UUID, visitor: TheActor, farm: State) -> Response:
    again = jobs.retry(farm, visitor.caller, job_id)
    return notice(request, "job_changed.html", deed="retry", job_id=again)


@router.post("/jobs/{job_id}/tier")
def change_tier(
    request: Request, job_id: UUID, tier: Annotated[Tier, Form()], visitor: TheActor, farm: State
) -> Response:
    jobs.change_tier(farm, visitor.caller, job_id, tier)
    return notice(request, "job_changed.html", deed="tier", tier=tier)
