"""Workers over HTTP: list them, and ask one to drain or to resume."""

from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import Admin, State, Viewer
from api.queries.fleet import WORKER, Worker
from api.schemas import example
from api.services import admin

router = APIRouter(tags=["farm"])


class Workers(BaseModel):
    model_config = example({"items": [WORKER]})

    items: list[Worker]


@router.get("/v1/workers", operation_id="listWorkers", summary="List the workers")
def list_workers(caller: Viewer, state: State) -> Workers:
    """Those that stopped within the last day, too."""
    return Workers(items=admin.list_workers(state))


@router.post("/v1/workers/{worker_id}/drain", operation_id="drainWorker", summary="Drain a worker")
def drain_worker(worker_id: UUID, caller: Admin, state: State) -> Worker:
    """It finishes what it holds and claims nothing more."""
    return admin.drain_worker(state, caller, worker_id)


@router.post("/v1/workers/{worker_id}/resume", operation_id="resumeWorker", summary="Resume a draining worker")
def resume_worker(worker_id: UUID, caller: Admin, state: State) -> Worker:
    return admin.resume_worker(state, caller, worker_id)
