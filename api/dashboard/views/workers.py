"""The workers: their state, the microbatches they hold and their last errors; drain, resume, lift a quarantine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import Connection, text

from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentOperator, CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.queries.fleet import find_quarantines
from api.services import workers
from common.db import transaction
from common.enums import WorkerState
from common.queue.lanes import EXACT
from common.schema import shown

router = APIRouter()


@view(router, "/workers", "workers.html")
def list_workers(state: State, visitor: CurrentVisitor) -> Read:
    tenant_id = visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            found = find_workers(connection, tenant_id)
            errors = find_worker_errors(connection, tenant_id)
            quarantined = find_quarantines(connection)
        alive = {worker.name for worker in found if worker.state != WorkerState.STOPPED}
        return {
            "workers": [worker for worker in found if worker.state != WorkerState.STOPPED],
            "stopped": [worker for worker in found if worker.state == WorkerState.STOPPED],
            "gone": [one for one in quarantined if one.name not in alive],
            "errors": errors,
            "silence_s": state.settings.lease_s,
        }

    return read


@router.post("/workers/{worker_id}/drain")
def drain_worker(request: Request, worker_id: UUID, visitor: CurrentOperator, state: State) -> Response:
    workers.drain_worker(state, visitor.caller, worker_id)
    return render_notice(request, "farm_notice.html", action="drain-worker")


@router.post("/workers/{worker_id}/resume")
def resume_worker(request: Request, worker_id: UUID, visitor: CurrentOperator, state: State) -> Response:
    workers.resume_worker(state, visitor.caller, worker_id)
    return render_notice(request, "farm_notice.html", action="resume-worker")


@router.post("/quarantines/lift")
def lift_quarantine(
    request: Request, visitor: CurrentOperator, state: State, name: Annotated[str, Form(pattern=r"^[^\x00]*$")]
) -> Response:
    """Of a worker that is gone, which has no id."""
    workers.lift_quarantine(state, visitor.caller, name)
    return render_notice(request, "farm_notice.html", action="lift-quarantine")


@dataclass(frozen=True)
class HeldMicrobatch:
    """A microbatch whose lease a worker holds: claimed, and perhaps started. Cancelled images are not counted."""

    lease_id: UUID
    model: str
    tiers: Sequence[str]
    images: int
    jobs: int
    job_ids: Sequence[UUID]  # only those of the caller's tenant
    claimed_at: datetime
    started_at: datetime | None


@dataclass(frozen=True)
class WorkerError:
    """An image that failed on a worker. `job_id` is None for a job of another tenant."""

    code: str
    message: str
    at: datetime
    model: str
    job_id: UUID | None


@dataclass(frozen=True)
class Worker:
    id: UUID
    name: str
    worker_class: Mapping[str, Any]
    state: WorkerState
    reason: str | None  # why it drains or has stopped
    quarantined_at: datetime | None
    quarantine_reason: str | None
    next_trial_at: datetime | None
    models: Sequence[str]
    resident: Sequence[str]
    refusals: Mapping[str, str]  # reason by model
    seconds_per_image: Mapping[str, float]  # by model
    capacity: Mapping[str, int]  # images per microbatch, by model
    device_status: Sequence[Mapping[str, Any]]  # as `api.queries.fleet.Device`
    started_at: datetime
    seen_at: datetime
    silent_s: float  # since its last heartbeat
    held: Sequence[HeldMicrobatch]  # in the order of rendering


def find_workers(connection: Connection, tenant_id: UUID) -> Sequence[Worker]:
    """All workers of the farm, by state and name, with those that stopped within the last day."""
    held: dict[UUID, list[HeldMicrobatch]] = {}
    for row in connection.execute(HELD_MICROBATCHES, {"tenant": tenant_id}):
        fields = dict(row._mapping)
        held.setdefault(fields.pop("worker_id"), []).append(HeldMicrobatch(**fields))
    return [
        Worker(**{**row._mapping, "state": WorkerState(row.state)}, held=held.get(row.id, []))
        for row in connection.execute(WORKERS)
    ]


def find_worker_errors(connection: Connection, tenant_id: UUID, each: int = 5) -> Mapping[UUID, Sequence[WorkerError]]:
    """The last errors of each worker, newest first, among the 200 images of the farm that failed last."""
    errors: dict[UUID, list[WorkerError]] = {}
    for row in connection.execute(ERRORS, {"tenant": tenant_id, "limit": 200, "each": each}):
        fields = dict(row._mapping)
        errors.setdefault(fields.pop("worker_id"), []).append(WorkerError(**fields))
    return errors


# Read all workers.
WORKERS = text("""
    SELECT id, workers.name, class AS worker_class, state, workers.reason, quarantined_at,
           quarantines.reason AS quarantine_reason, retry_at AS next_trial_at, models, resident, refusals,
           seconds_per_image, capacity, device_status, started_at, seen_at,
           extract(epoch FROM now() - seen_at)::float AS silent_s
    FROM workers LEFT JOIN quarantines ON quarantines.name = workers.name ORDER BY state, workers.name, id
""")

# Read the open leases with their images that are still wanted.
HELD_MICROBATCHES = text("""
    SELECT leases.worker_id, leases.id AS lease_id, min(lanes.model) AS model,
           array_agg(DISTINCT lanes.tier::text) AS tiers, count(*) AS images, count(DISTINCT images.job_id) AS jobs,
           coalesce(array_agg(DISTINCT images.job_id) FILTER (WHERE lanes.tenant_id = :tenant), '{}') AS job_ids,
           leases.claimed_at, leases.started_at
    FROM leases CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
    JOIN images ON images.id = held.id AND images.lease_id = leases.id AND images.state IN ('queued', 'running')
    JOIN lanes ON lanes.id = images.lane_id
    WHERE leases.ended_at IS NULL
    GROUP BY leases.id ORDER BY leases.started_at NULLS LAST, leases.claimed_at
""")

# Read the last errors of each worker, among the images that failed last in the farm.
ERRORS = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT image.*, lanes.model, lanes.tenant_id FROM {EXACT} AS lanes CROSS JOIN LATERAL (
            SELECT id, job_id, lease_id, error_code, error_message, finished_at FROM images
            WHERE images.lane_id = lanes.id AND images.state = 'failed'
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        WHERE lanes.failed > 0 AND {shown("lanes")} ORDER BY finished_at DESC, id DESC LIMIT :limit),
    failed AS (
        SELECT leases.worker_id, error_code AS code, coalesce(error_message, '') AS message, finished_at AS at, model,
               CASE WHEN tenant_id = :tenant THEN job_id END AS job_id,
               row_number() OVER (PARTITION BY worker_id ORDER BY finished_at DESC, newest.id) AS position
        FROM newest JOIN leases ON leases.id = newest.lease_id)
    SELECT worker_id, code, message, at, model, job_id FROM failed WHERE position <= :each ORDER BY position
""")
