"""What operators do with tenants: create, list, change, suspend, resume, erase. Each is recorded in the audit."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api import sentence
from api.deps import AppState
from api.pagination import Paging
from api.queries.erasures import Erasure, find_erasure
from api.queries.keys import KeyWithSecret
from api.queries.tenants import TENANT, Tenant, find_tenant, find_tenants
from api.schemas import example
from api.services.keys import KeyRequest, insert_key
from common.accounts import audit, tenants
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import Scope, Tier
from common.errors import Conflict

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x20]([^\x00-\x1f]*[^\x00-\x20])?$", examples=["shop"])
]
Days = Annotated[int, Field(ge=1, le=36_500)]


class TenantSettings(BaseModel):
    """What an operator decides for a tenant."""

    model_config = ConfigDict(extra="forbid")

    weight: float = Field(
        default_factory=lambda: 1.0, ge=0.001, le=1000, description="Its share of the farm; 1 for a new tenant."
    )
    limits: dict[str, int | None] = Field(
        default_factory=dict,
        max_length=50,
        description="By name. Those that are not named stay; null: as in the settings of the farm.",
        examples=[{"waiting_images": 10_000}],
    )
    tiers: list[Tier] | None = Field(
        default=None, min_length=1, max_length=10, description="That it may use; null: all."
    )
    keep_pictures_days: Days | None = Field(default=None, description="After the end of a job; null: for good.")
    keep_rows_days: Days | None = Field(default=None, description="After the end of a job; null: for good.")

    @property
    def chosen(self) -> dict[str, Any]:
        """Those that are given."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude={"key"})
        if given.get("tiers"):
            given["tiers"] = list(dict.fromkeys(given["tiers"]))
        return given


class NewTenant(TenantSettings):
    """A tenant to create. `key`: the name of its first API key, with the scope `admin`, to create with it."""

    name: Name
    key: str | None = Field(default=None, min_length=1, max_length=100, pattern=r"^[^\x00]*$", examples=["admin"])


class TenantChange(TenantSettings):
    """What is to change of a tenant; what is left out stays."""

    name: Name = Field(default_factory=str)  # never used: what is left out stays


class CreatedTenant(Tenant):
    """A new tenant, and its first key if one was asked for: the secret is in this answer only."""

    model_config = example(TENANT | {"key": None})

    key: KeyWithSecret | None


def create(state: AppState, caller: Caller, new: NewTenant) -> CreatedTenant:
    """Raises Conflict if there is a tenant of that name, Invalid."""
    chosen = new.chosen
    name = chosen.pop("name")
    with transaction(state.engine) as connection:
        tenant_id = tenants.create(connection, name, chosen)
        audit.record(connection, caller, Action.CREATE_TENANT, tenant_id, tenant_id, name=name, **chosen)
        key = None
        if new.key:
            request = KeyRequest(name=new.key, scopes=[Scope.ADMIN])
            key = insert_key(state, connection, caller, request, tenant_id)
        return CreatedTenant(**vars(find_tenant(connection, tenant_id)), key=key)


def get(state: AppState, tenant_id: UUID) -> Tenant:
    """Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return find_tenant(connection, tenant_id)


def get_page(state: AppState, paging: Paging, name: str | None = None) -> tuple[list[Tenant], str | None]:
    """Newest first, and the cursor of the next page. `name`: only the one of this name."""
    with transaction(state.autocommit) as connection:
        return paging.cut(find_tenants(connection, paging.before, paging.limit + 1, name))


def change(state: AppState, caller: Caller, tenant_id: UUID, wanted: TenantChange) -> Tenant:
    """Raises NotFound, Conflict if another tenant has the new name or this one was erased, Invalid."""
    with transaction(state.engine) as connection:
        tenants.change(connection, tenant_id, wanted.chosen)
        if wanted.chosen:
            audit.record(connection, caller, Action.CHANGE_TENANT, tenant_id, tenant_id, **wanted.chosen)
        return find_tenant(connection, tenant_id)


def suspend(state: AppState, caller: Caller, tenant_id: UUID) -> Tenant:
    """Raises NotFound, or Conflict for the caller's own tenant: nobody could resume it."""
    if tenant_id == caller.tenant_id:
        raise Conflict(sentence("own_tenant"))
    with transaction(state.engine) as connection:
        if tenants.suspend(connection, tenant_id):
            audit.record(connection, caller, Action.SUSPEND_TENANT, tenant_id, tenant_id)
        return find_tenant(connection, tenant_id)


def resume(state: AppState, caller: Caller, tenant_id: UUID) -> Tenant:
    """Raises NotFound, or Conflict for a tenant that was erased. Wakes the workers of what waits."""
    with transaction(state.engine) as connection:
        if is_resumed := tenants.resume(connection, tenant_id):
            audit.record(connection, caller, Action.RESUME_TENANT, tenant_id, tenant_id)
        models = tenants.models_waiting(connection, tenant_id) if is_resumed else []
        tenant = find_tenant(connection, tenant_id)
    for model in models:
        state.broker.wake(model)
    return tenant


def erase(state: AppState, caller: Caller, tenant_id: UUID) -> Erasure:
    """Have all that a suspended tenant has deleted, for good. A second call changes nothing.

    Raises NotFound, or Conflict for a tenant that is not suspended, runs the farm, or is the caller's own.
    """
    if tenant_id == caller.tenant_id:
        raise Conflict(sentence("own_tenant_stays"))
    with transaction(state.engine) as connection:
        if tenants.erase(connection, tenant_id):
            audit.record(connection, caller, Action.ERASE_TENANT, tenant_id, tenant_id)
        return find_erasure(connection, tenant_id)


def get_erasure(state: AppState, tenant_id: UUID) -> Erasure:
    """How far the erasure of a tenant has come. Raises NotFound, also for a tenant that was not erased."""
    with transaction(state.autocommit) as connection:
        return find_erasure(connection, tenant_id)


def create_key(state: AppState, caller: Caller, tenant_id: UUID, request: KeyRequest) -> KeyWithSecret:
    """A key for another tenant. Raises NotFound, Invalid, or Conflict for a tenant that was erased."""
    with transaction(state.engine) as connection:
        tenants.raise_if_erased(connection, tenant_id)
        return insert_key(state, connection, caller, request, tenant_id)
