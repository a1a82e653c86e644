"""Workers over HTTP: list them, ask one to drain or to resume, lift a quarantine."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from api.deps import Operator, State, Viewer
from api.queries.fleet import QUARANTINE, WORKER, Quarantine, Worker
from api.schemas import example
from api.services import workers

router = APIRouter(tags=["farm"])


WorkerName = Annotated[str, Path(description="The name of a worker.", pattern=r"^[^\x00]*$")]


class Workers(BaseModel):
    model_config = example({"items": [WORKER], "quarantines": [QUARANTINE]})

    items: list[Worker]
    quarantines: list[Quarantine] = Field(description="By the names of workers; also of workers that are gone.")


@router.get("/v1/workers", operation_id="listWorkers", summary="List the workers")
def list_workers(caller: Viewer, state: State) -> Workers:
    """Those that stopped within the last day, too."""
    return Workers(items=workers.list_workers(state), quarantines=workers.list_quarantines(state))


@router.post("/v1/workers/{worker_id}/drain", operation_id="drainWorker", summary="Drain a worker")
def drain_worker(worker_id: UUID, caller: Operator, state: State) -> Worker:
    """It finishes what it holds and claims nothing more."""
    return workers.drain_worker(state, caller, worker_id)


@router.post("/v1/workers/{worker_id}/resume", operation_id="resumeWorker", summary="Resume a worker")
def resume_worker(worker_id: UUID, caller: Operator, state: State) -> Worker:
    """Ends its drain, and the quarantine of its name."""
    return workers.resume_worker(state, caller, worker_id)


@router.delete(
    "/v1/quarantines/{name:path}", operation_id="liftQuarantine", summary="Lift a quarantine", status_code=204
)
def lift_quarantine(name: WorkerName, caller: Operator, state: State) -> Response:
    """The workers of this name claim again; one that is gone, when it starts again."""
    workers.lift_quarantine(state, caller, name)
    return Response(status_code=204)
