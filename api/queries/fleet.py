"""The workers, and what follows for a model: who serves it, who refuses it, why it waits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import AliasChoices, BaseModel, Field
from sqlalchemy import Connection, text

from api import sentence
from api.schemas import WaitingFor, example
from common.enums import WorkerState
from common.errors import NotFound
from common.schema import columns_of, workers
from common.sentences import Sentence

NAMED_WORKERS = 3  # in the reason why a job waits

WORKER: dict[str, Any] = {
    "id": "019c2f60-0a4b-7d55-9b1d-0e2f3a4b5c6d",
    "name": "gpu-1 cuda:0",
    "class": {"device": "NVIDIA L4", "precision": "fp16", "torch": "2.13.0"},
    "state": "ready",
    "reason": None,
    "quarantined_at": None,
    "quarantine_reason": None,
    "next_trial_at": None,
    "models": ["zh-v0", "mini-zh"],
    "resident": ["zh-v0"],
    "refusals": {},
    "seconds_per_image": {"zh-v0": 0.62},
    "capacity": {"zh-v0": 8},
    "devices": [
        {
            "name": "cuda:0",
            "memory_used": 9_412_018_176,
            "memory_total": 24_152_899_584,
            "utilisation": 98,
            "temperature_c": 64,
            "errors": [],
        }
    ],
    "started_at": "2026-11-22T06:00:00Z",
    "seen_at": "2026-11-22T08:00:06Z",
}


QUARANTINE: dict[str, Any] = {
    "name": "gpu-2 cuda:0",
    "quarantined_at": "2026-11-22T07:40:00Z",
    "reason": "its trial picture of zh-v0 failed (CUDA error)",
    "model": "zh-v0",
    "trials": 2,
    "next_trial_at": "2026-11-22T08:01:00Z",
}


class Device(BaseModel):
    """How a device did at the last heartbeat."""

    name: str
    memory_used: int | None = Field(description="Bytes, by all processes; without a GPU those of the worker's process.")
    memory_total: int | None = Field(description="Bytes.")
    utilisation: int | None = Field(description="Percent.")
    temperature_c: int | None
    errors: list[str] = Field(description="What is wrong with it.")


class Worker(BaseModel):
    """One process on one device. Workers of one class render the same pictures."""

    model_config = example(WORKER)

    id: UUID
    name: str
    worker_class: dict[str, Any] = Field(alias="class")
    state: WorkerState
    reason: str | None = Field(description="Why it drains or has stopped.")
    quarantined_at: datetime | None = Field(description="Since when it claims nothing because its host is at fault.")
    quarantine_reason: str | None
    next_trial_at: datetime | None = Field(description="When it tries by itself whether its host is well again.")
    models: list[str] = Field(description="That it serves.")
    resident: list[str] = Field(description="That are in its memory.")
    refusals: dict[str, str] = Field(description="Models that it refuses, and why.")
    seconds_per_image: dict[str, float] = Field(description="Measured lately, by model.")
    capacity: dict[str, int] = Field(description="Images that it renders together, by loaded model.")
    devices: list[Device] = Field(
        validation_alias=AliasChoices("device_status", "devices"),
        description="Empty where neither the system nor NVML tells.",
    )
    started_at: datetime
    seen_at: datetime


class Quarantine(BaseModel):
    """Why the workers of a name claim nothing: also of one that is gone, and for its next start."""

    model_config = example(QUARANTINE)

    name: str = Field(description="Of the workers.")
    quarantined_at: datetime
    reason: str
    model: str | None = Field(description="That it renders in a trial; null: any.")
    trials: int = Field(description="Since then.")
    next_trial_at: datetime


@dataclass(frozen=True)
class FleetWorker:
    name: str
    state: WorkerState
    models: Sequence[str]
    resident: Sequence[str]
    refusals: Mapping[str, str]
    quarantine_reason: str | None = None

    @property
    def takes_work(self) -> bool:
        return self.state != WorkerState.DRAINING and self.quarantine_reason is None


class Fleet:
    """The workers that have not stopped. `workers`: the value of WORKERS_JSON."""

    def __init__(self, workers: Iterable[Mapping[str, Any]] | None) -> None:
        self.workers = [FleetWorker(**worker) for worker in workers or ()]

    def serving(self, model: str) -> list[FleetWorker]:
        return [worker for worker in self.workers if model in worker.models]

    def refusing(self, model: str) -> list[FleetWorker]:
        return [worker for worker in self.workers if model in worker.refusals]

    def waiting_reason(self, model: str, *, is_backing_off: bool) -> WaitingFor:
        """Why a job of this model waits, if it does."""
        serving, refusing = self.serving(model), self.refusing(model)
        if not serving and refusing:
            first = refusing[0]
            message = sentence("model_refused", worker=first.name, reason=first.refusals[model])
            return WaitingFor(code="model_refused", message=message)
        if not serving:
            return WaitingFor(code="no_worker", message=sentence("no_worker", model=model))
        taking = [worker for worker in serving if worker.takes_work]
        if not taking and (set_aside := [worker for worker in serving if worker.quarantine_reason]):
            named, reason = set_aside[0].name, set_aside[0].quarantine_reason
            message = sentence("workers_quarantined", model=model, worker=named, reason=reason)
            return WaitingFor(code="workers_quarantined", message=message)
        if not taking:
            return WaitingFor(code="draining", message=sentence("draining", model=model))
        if is_backing_off:
            return WaitingFor(code="backing_off", message=sentence("backing_off"))
        return WaitingFor(code="workers_busy", message=_busy(taking))


def _busy(workers: Sequence[FleetWorker]) -> Sentence:
    names, more = ", ".join(worker.name for worker in workers[:NAMED_WORKERS]), len(workers) - NAMED_WORKERS
    if more > 0:
        return sentence("many_workers_busy", workers=names, more=more)
    return sentence("workers_busy", workers=names)


def find_workers(connection: Connection) -> list[Worker]:
    """By state and name; those that stopped within the last day, too."""
    return [Worker.model_validate(dict(row._mapping)) for row in connection.execute(READ_WORKERS)]


def find_worker(connection: Connection, worker_id: UUID) -> Worker:
    """Raises NotFound."""
    row = connection.execute(READ_WORKER, {"worker": worker_id}).first()
    if row is None:
        raise NotFound(sentence("worker_not_found", worker=worker_id))
    return Worker.model_validate(dict(row._mapping))


def find_quarantines(connection: Connection) -> list[Quarantine]:
    """By name."""
    return [Quarantine.model_validate(dict(row._mapping)) for row in connection.execute(READ_QUARANTINES)]


def read_fleet(connection: Connection) -> Fleet:
    return Fleet(connection.execute(text(WORKERS_JSON)).scalar())


WORKER_COLUMNS = f"""
    {columns_of(workers)}, quarantines.quarantined_at, quarantines.reason AS quarantine_reason,
    quarantines.retry_at AS next_trial_at FROM workers LEFT JOIN quarantines ON quarantines.name = workers.name"""

# Every worker that the farm remembers.
READ_WORKERS = text(f"SELECT {WORKER_COLUMNS} ORDER BY workers.state, workers.name, workers.id")

# One worker.
READ_WORKER = text(f"SELECT {WORKER_COLUMNS} WHERE workers.id = :worker")

# Every quarantine.
READ_QUARANTINES = text("""
    SELECT name, quarantined_at, reason, model, trials, retry_at AS next_trial_at FROM quarantines ORDER BY name
""")

# The workers that have not stopped, as JSON: a part of queries that need them for one of their rows.
WORKERS_JSON = """
    SELECT json_agg(worker) FROM (
        SELECT name, state, models, resident, refusals,
               (SELECT quarantines.reason FROM quarantines WHERE quarantines.name = workers.name) AS quarantine_reason
        FROM workers WHERE state <> 'stopped' ORDER BY name, id) AS worker"""
