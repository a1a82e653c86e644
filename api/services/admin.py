"""What administrators do: keys, workers, licences; and the lists of them. Each change is recorded in the audit."""

from uuid import UUID

from api import sentence
from api.deps import AppState
from api.queries.fleet import Worker, find_worker, find_workers
from api.queries.keys import Key, find_keys
from api.queries.models import Model, find_models
from api.schemas import KeyRequest
from common.accounts import audit, licences, tenants
from common.accounts.audit import Action
from common.accounts.tenants import Caller, NewKey
from common.db import transaction
from common.errors import Conflict, NotFound
from common.queue import workers


def create_key(state: AppState, caller: Caller, request: KeyRequest) -> NewKey:
    """The key with its secret, which is not stored."""
    pepper, scopes = state.settings.key_pepper.get_secret_value(), list(dict.fromkeys(request.scopes))
    with transaction(state.engine) as connection:
        key = tenants.create_key(connection, caller.tenant_id, request.name, scopes, pepper)
        audit.record(connection, caller, Action.CREATE_KEY, key.id, name=request.name, scopes=scopes)
    return key


def list_keys(state: AppState, caller: Caller) -> list[Key]:
    with transaction(state.autocommit) as connection:
        return find_keys(connection, caller.tenant_id)


def revoke_key(state: AppState, caller: Caller, key_id: UUID) -> None:
    """Raises NotFound."""
    with transaction(state.engine) as connection:
        tenants.revoke_key(connection, caller.tenant_id, key_id)
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
    """Raises NotFound when no such worker is up."""
    with transaction(state.engine) as connection:
        workers.resume(connection, worker_id)
        audit.record(connection, caller, Action.RESUME_WORKER, worker_id)
        return find_worker(connection, worker_id)
