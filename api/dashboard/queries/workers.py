"""The workers: what each of them is, holds and did wrong. What it is asked to do is `common.queue.workers`'s."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import WorkerState


@dataclass(frozen=True)
class Held:
    """A microbatch in a worker's hands: claimed, and perhaps started. Counted are those that are still wanted of it."""

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
    """An image that failed in a worker's hands. Which job's: only if it is the caller's tenant's."""

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
    models: Sequence[str]
    resident: Sequence[str]
    refusals: Mapping[str, str]
    seconds_per_image: Mapping[str, float]
    capacity: Mapping[str, int]
    started_at: datetime
    seen_at: datetime
    silent_s: float  # since it was last heard of
    held: Sequence[Held]  # what it renders first, then what it has claimed ahead


def find_workers(connection: Connection, tenant_id: UUID) -> Sequence[Worker]:
    """By state and name; those that stopped within the last day, too."""
    held: dict[UUID, list[Held]] = {}
    for row in connection.execute(HELD, {"tenant": tenant_id}):
        fields = dict(row._mapping)
        held.setdefault(fields.pop("worker_id"), []).append(Held(**fields))
    return [
        Worker(**{**row._mapping, "state": WorkerState(row.state)}, held=held.get(row.id, []))
        for row in connection.execute(WORKERS)
    ]


def find_worker_errors(connection: Connection, tenant_id: UUID, each: int = 5) -> Mapping[UUID, Sequence[WorkerError]]:
    """By worker, the newest first: of the 200 images of the farm that failed last."""
    errors: dict[UUID, list[WorkerError]] = {}
    for row in connection.execute(ERRORS, {"tenant": tenant_id, "limit": 200, "each": each}):
        fields = dict(row._mapping)
        errors.setdefault(fields.pop("worker_id"), []).append(WorkerError(**fields))
    return errors


WORKERS = text("""
    SELECT id, name, class AS worker_class, state, reason, models, resident, refusals, seconds_per_image, capacity,
           started_at, seen_at, extract(epoch FROM now() - seen_at)::float AS silent_s
    FROM workers ORDER BY state, name, id
""")

HELD = text("""
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

ERRORS = text("""
    WITH newest AS MATERIALIZED (
        SELECT image.*, lanes.model, lanes.tenant_id FROM lanes CROSS JOIN LATERAL (
            SELECT id, job_id, lease_id, error_code, error_message, finished_at FROM images
            WHERE images.lane_id = lanes.id AND images.state = 'failed'
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        WHERE lanes.failed > 0 ORDER BY finished_at DESC, id DESC LIMIT :limit),
    failed AS (
        SELECT leases.worker_id, error_code AS code, coalesce(error_message, '') AS message, finished_at AS at, model,
               CASE WHEN tenant_id = :tenant THEN job_id END AS job_id,
               row_number() OVER (PARTITION BY worker_id ORDER BY finished_at DESC, newest.id) AS place
        FROM newest JOIN leases ON leases.id = newest.lease_id)
    SELECT worker_id, code, message, at, model, job_id FROM failed WHERE place <= :each ORDER BY place
""")
