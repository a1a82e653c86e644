"""What administrators do: keys, workers, licences; and the lists of them. Each change is recorded in the audit."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from api import sentence
from api.deps import AppState
from api.queries.fleet import Quarantine, Worker, find_quarantines, find_worker, find_workers
from api.queries.keys import Key, KeyWithSecret, find_key, find_keys
from api.queries.models import Model, find_models
from api.schemas import Moment
from common.accounts import admission, audit, keys, licences
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import Scope, WorkerState
from common.errors import Conflict, Invalid, NotFound
from common.queue import quarantines, workers


class KeyRequest(BaseModel):
    """The name of a key, what it may do, and until when: `admin` everything within its tenant, `operator` what concerns
    the farm.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$", examples=["the web shop"])
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), examples=[["jobs:read", "jobs:write"]])
    expires_at: Moment | None = Field(
        default=None, description="From then on it is refused; null: never.", examples=["2027-01-31T00:00:00Z"]
    )


def create_key(state: AppState, caller: Caller, request: KeyRequest) -> KeyWithSecret:
    """The key with its secret, which is not stored.

    Raises OperatorNeeded for a scope that the caller may not give, and LimitReached.
    """
    with transaction(state.engine) as connection:
        return insert_key(state, connection, caller, request, caller.tenant_id)


def insert_key(
    state: AppState, connection: Connection, caller: Caller, request: KeyRequest, tenant_id: UUID
) -> KeyWithSecret:
    """See `create_key`; of this tenant."""
    if Scope.OPERATOR in request.scopes:
        caller.require_operator()
    if request.expires_at and request.expires_at <= datetime.now(UTC):
        raise Invalid.field("expires_at", sentence("expires_in_past"))
    if tenant_id == caller.tenant_id:  # an operator may give another tenant more
        admission.admit(connection, tenant_id, state.limits_of(caller), keys=1)
    pepper, scopes = state.settings.key_pepper.get_secret_value(), list(dict.fromkeys(request.scopes))
    key = keys.create_key(connection, tenant_id, request.name, scopes, pepper, request.expires_at)
    until = {"expires_at": request.expires_at} if request.expires_at else {}
    audit.record(connection, caller, Action.CREATE_KEY, key.id, tenant_id, name=request.name, scopes=scopes, **until)
    return KeyWithSecret(**vars(find_key(connection, key.id)), secret=key.secret)


def list_keys(state: AppState, caller: Caller) -> list[Key]:
    with transaction(state.autocommit) as connection:
        return find_keys(connection, caller.tenant_id)


def revoke_key(state: AppState, caller: Caller, key_id: UUID) -> None:
    """Raises NotFound."""
    with transaction(state.engine) as connection:
        keys.revoke_key(connection, caller.tenant_id, key_id)
        audit.record(connection, caller, Action.REVOKE_KEY, key_id)


def list_models(state: AppState, caller: Caller) -> list[Model]:
    with transaction(state.autocommit) as connection:
        return find_models(connection, caller.tenant_id, state.catalog, state.default_model)


def accept_licence(state: AppState, caller: Caller, model: str, version: str) -> None:
    """Raises NotFound, or Conflict when that is not the version of its licence."""
    if (entry := state.catalog.models.get(model)) is None:
        raise NotFound(sentence("model_not_found", model=model))
    licence = entry.licence
    if version != licence.version:
        raise Conflict(
            sentence("licence_version_differs", licence=licence.name, version=licence.version, url=licence.url)
        )
    with transaction(state.engine) as connection:
        licences.accept(connection, caller.tenant_id, caller.key_id, licence)
        audit.record(connection, caller, Action.ACCEPT_LICENCE, model, licence=licence.name, version=version)


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
