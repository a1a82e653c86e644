"""Models: listed, and their licences accepted, which the audit records."""

from api import sentence
from api.deps import AppState
from api.queries.models import Model, find_models
from common.accounts import audit, licences
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.db import transaction
from common.errors import Conflict, NotFound


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
