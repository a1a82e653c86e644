"""Tenants over HTTP: an operator creates, lists, changes, suspends, resumes and erases them.

`api.services.tenants` does it.
"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import BaseUrl, Operator, State
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.erasures import Erasure
from api.queries.keys import KeyWithSecret
from api.queries.tenants import TENANT, Tenant
from api.schemas import example
from api.services import tenants
from api.services.keys import KeyRequest
from api.services.tenants import CreatedTenant, NewTenant, TenantChange

router = APIRouter(tags=["tenants"])


class TenantQuery(Paging):
    name: str | None = Field(default=None, pattern=r"^[^\x00]*$", description="Only the tenant of this name.")


class Tenants(BaseModel):
    model_config = example({"items": [TENANT], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Tenant]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


@router.post("/v1/tenants", operation_id="createTenant", summary="Create a tenant", status_code=201)
def create_tenant(
    new: NewTenant, caller: Operator, state: State, base_url: BaseUrl, response: Response
) -> CreatedTenant:
    """With `key`, also its first API key, so that its administrators can make others."""
    tenant = tenants.create(state, caller, new)
    response.headers["Location"] = f"{base_url}v1/tenants/{tenant.id}"
    return tenant


@router.get("/v1/tenants", operation_id="listTenants", summary="List the tenants, newest first")
def list_tenants(
    query: Annotated[TenantQuery, Query()], caller: Operator, state: State, request: Request, response: Response
) -> Tenants:
    page, cursor = tenants.get_page(state, query, query.name)
    response.headers.update(next_link(request, cursor))
    return Tenants(items=page, next_cursor=cursor)


@router.get("/v1/tenants/{tenant_id}", operation_id="readTenant", summary="Read a tenant")
def read_tenant(tenant_id: UUID, caller: Operator, state: State) -> Tenant:
    return tenants.get(state, tenant_id)


@router.patch("/v1/tenants/{tenant_id}", operation_id="changeTenant", summary="Change a tenant")
def change_tenant(tenant_id: UUID, wanted: TenantChange, caller: Operator, state: State) -> Tenant:
    """What is left out stays as it is."""
    return tenants.change(state, caller, tenant_id, wanted)


@router.post("/v1/tenants/{tenant_id}/suspend", operation_id="suspendTenant", summary="Suspend a tenant")
def suspend_tenant(tenant_id: UUID, caller: Operator, state: State) -> Tenant:
    """Its keys are refused with 403 `tenant_suspended`. What waits is kept and not rendered; what is being rendered is
    finished. 409 for your own tenant.
    """
    return tenants.suspend(state, caller, tenant_id)


@router.post("/v1/tenants/{tenant_id}/resume", operation_id="resumeTenant", summary="Resume a tenant")
def resume_tenant(tenant_id: UUID, caller: Operator, state: State) -> Tenant:
    """What waits is rendered. A tenant that is not suspended stays as it is. 409 for one that was erased."""
    return tenants.resume(state, caller, tenant_id)


@router.post(
    "/v1/tenants/{tenant_id}/erase", operation_id="eraseTenant", summary="Erase a suspended tenant", status_code=202
)
def erase_tenant(tenant_id: UUID, caller: Operator, state: State) -> Erasure:
    """All that it has is deleted, for good: rows, pictures and files, keys, its name. The totals of its usage and its
    tombstones stay. It takes a while; follow it at `…/erasure`. 409 for a tenant that is not suspended, for your own
    and for that which runs the farm. A second request changes nothing; where the listing at the end found objects that
    no row names, the bucket is listed again.
    """
    return tenants.erase(state, caller, tenant_id)


@router.get("/v1/tenants/{tenant_id}/erasure", operation_id="readErasure", summary="Read how far an erasure has come")
def read_erasure(tenant_id: UUID, caller: Operator, state: State) -> Erasure:
    """What is left of an erased tenant, what is kept of it and why, and what the bucket has. 404 for a tenant that was
    not erased.
    """
    return tenants.get_erasure(state, tenant_id)


@router.post(
    "/v1/tenants/{tenant_id}/keys",
    operation_id="createKeyOfTenant",
    summary="Create an API key of a tenant",
    status_code=201,
)
def create_key_of_tenant(tenant_id: UUID, new: KeyRequest, caller: Operator, state: State) -> KeyWithSecret:
    return tenants.create_key(state, caller, tenant_id, new)
