"""What operators do with workers: list, drain, resume, lift a quarantine. Each change is recorded in the audit."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from api import sentence
from api.deps import AppState
from api.queries.fleet import Quarantine, Worker, find_quarantines, find_worker, find_workers
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import WorkerState
from common.errors import NotFound
from common.queue import quarantines, workers


def list_workers(state: AppState) -> list[Worker]:
    """By state and name; those that stopped within the last day, too."""
    with transaction(state.autocommit) as connection:
        return find_workers(connection)


def drain_worker(state: AppState, caller: Caller, worker_id: UUID) -> Worker:
    """Raises NotFound when no such worker is up."""
    with transaction(state.engine) as connection:
        workers.drain(connection, worker_id, sentence("drain_asked"))
        audit.record(connection, caller, Action.DRAIN_WORKER, worker_id)
        return find_worker(connection, worker_id)


def resume_worker(state: AppState, caller: Caller, worker_id: UUID) -> Worker:
    """End its drain and the quarantine of its name. Raises NotFound when it is neither up nor quarantined."""
    with transaction(state.engine) as connection:
        worker = find_worker(connection, worker_id)
        if is_quarantined := worker.quarantined_at is not None:
            with suppress(NotFound):  # its trial was good meanwhile
                quarantines.resume(connection, worker.name)
        if worker.state == WorkerState.DRAINING or not is_quarantined:
            workers.resume(connection, worker_id)
        detail: dict[str, Any] = {"quarantined": worker.quarantine_reason} if is_quarantined else {}
        audit.record(connection, caller, Action.RESUME_WORKER, worker_id, **detail)
        return find_worker(connection, worker_id)


def list_quarantines(state: AppState) -> list[Quarantine]:
    with transaction(state.autocommit) as connection:
        return find_quarantines(connection)


def lift_quarantine(state: AppState, caller: Caller, name: str) -> None:
    """Also of a worker that is gone. Raises NotFound when no worker of this name is quarantined."""
    with transaction(state.engine) as connection:
        quarantines.resume(connection, name)
        audit.record(connection, caller, Action.RESUME_WORKER, name)
