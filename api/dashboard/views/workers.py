"""The workers: what each of them is, holds and did wrong; drain and resume."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from api.dashboard.queries.workers import find_worker_errors, find_workers
from api.dashboard.rendering import notice
from api.dashboard.sessions import TheActor, TheVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.services import admin
from common.db import transaction
from common.enums import WorkerState

router = APIRouter()


@view(router, "/workers", "workers.html")
def workers(farm: State, visitor: TheVisitor) -> Read:
    tenant_id = visitor.caller.tenant_id

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            found = find_workers(connection, tenant_id)
            errors = find_worker_errors(connection, tenant_id)
        return {
            "crew": [one for one in found if one.state != WorkerState.STOPPED],
            "stopped": [one for one in found if one.state == WorkerState.STOPPED],
            "errors": errors,
            "silence_s": farm.settings.lease_s,
        }

    return look


@router.post("/workers/{worker_id}/drain")
def drain(request: Request, worker_id: UUID, visitor: TheActor, farm: State) -> Response:
    admin.drain_worker(farm, visitor.caller, worker_id)
    return notice(request, "notice_farm.html", done="drained")


@router.post("/workers/{worker_id}/resume")
def resume(request: Request, worker_id: UUID, visitor: TheActor, farm: State) -> Response:
    admin.resume_worker(farm, visitor.caller, worker_id)
    return notice(request, "notice_farm.html", done="resumed")
