"""API keys: created, listed, revoked by administrators, or by operators for another tenant. Recorded in the audit."""

from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from api import sentence
from api.deps import AppState
from api.queries.keys import Key, KeyWithSecret, find_key, find_keys
from api.schemas import Moment
from common.accounts import admission, audit, keys
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import Scope
from common.errors import Invalid


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
