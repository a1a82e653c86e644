"""Workers over HTTP: who renders, with what, how fast; and asking one to drain or to go on."""

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import select

from api.deps import Admin, AppState, State, Viewer
from api.schemas import example
from api.services import actions
from common.db import transaction
from common.enums import WorkerState
from common.errors import NotFound
from common.schema import workers as table

router = APIRouter(tags=["farm"])


WORKER: dict[str, Any] = {
    "id": "019c2f60-0a4b-7d55-9b1d-0e2f3a4b5c6d",
    "name": "gpu-1 cuda:0",
    "class": {"device": "NVIDIA L4", "precision": "fp16", "torch": "2.13.0"},
    "state": "ready",
    "reason": None,
    "models": ["zh-v0", "mini-zh"],
    "resident": ["zh-v0"],
    "refusals": {},
    "seconds_per_image": {"zh-v0": 0.62},
    "capacity": {"zh-v0": 8},
    "started_at": "2026-11-22T06:00:00Z",
    "seen_at": "2026-11-22T08:00:06Z",
}


class Worker(BaseModel):
    """One process on one device. Its class says whose pictures are comparable."""

    model_config = example(WORKER)

    id: UUID
    name: str
    worker_class: dict[str, Any] = Field(alias="class")
    state: WorkerState
    reason: str | None = Field(description="Why it drains or has stopped.")
    models: list[str] = Field(description="That it serves.")
    resident: list[str] = Field(description="That it holds in memory.")
    refusals: dict[str, str] = Field(description="That it will not serve, and why.")
    seconds_per_image: dict[str, float] = Field(description="Lately measured, by model.")
    capacity: dict[str, int] = Field(description="Images that it renders together, by model; of those it has loaded.")
    started_at: datetime
    seen_at: datetime


class Workers(BaseModel):
    model_config = example({"items": [WORKER]})

    items: list[Worker]


@router.get("/v1/workers", operation_id="listWorkers", summary="List the workers")
def list_workers(caller: Viewer, farm: State) -> Workers:
    """Those that stopped within the last day, too."""
    with transaction(farm.autocommit) as connection:
        rows = connection.execute(select(table).order_by(table.c.state, table.c.name, table.c.id)).all()
    return Workers(items=[Worker.model_validate(dict(row._mapping)) for row in rows])


@router.post(
    "/v1/workers/{worker_id}/drain", operation_id="drainWorker", summary="Let a worker finish what it holds, no more"
)
def drain_worker(worker_id: UUID, caller: Admin, farm: State) -> Worker:
    actions.drain_worker(farm, caller, worker_id)
    return look(farm, worker_id)


@router.post("/v1/workers/{worker_id}/resume", operation_id="resumeWorker", summary="Let a draining worker go on")
def resume_worker(worker_id: UUID, caller: Admin, farm: State) -> Worker:
    actions.resume_worker(farm, caller, worker_id)
    return look(farm, worker_id)


def look(farm: AppState, worker_id: UUID) -> Worker:
    with transaction(farm.autocommit) as connection:
        row = connection.execute(select(table).where(table.c.id == worker_id)).first()
    if row is None:
        raise NotFound(f"There is no worker {worker_id}.")
    return Worker.model_validate(dict(row._mapping))
