"""The tenants of the farm, for who runs it: list, create, change, suspend, resume, erase."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from api.dashboard import sentence
from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentOperator, CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.pagination import Paging
from api.services import tenants
from api.services.tenants import NewTenant, TenantChange
from common.enums import Tier
from common.errors import Invalid, wrong_fields

router = APIRouter()

FIRST_KEY = "admin"


async def require_operator(visitor: CurrentVisitor) -> None:
    visitor.caller.require_operator()


OnlyOperators = Annotated[None, Depends(require_operator)]


@view(router, "/tenants", "tenants.html")
def list_tenants(paging: Annotated[Paging, Query()], state: State, _: OnlyOperators) -> Read:
    def read() -> dict[str, Any]:
        found, cursor = tenants.get_page(state, paging)
        return {"tenants": found, "cursor": cursor, "paging": paging, "tiers": list(Tier)}

    return read


@view(router, "/tenants/{tenant_id}", "tenant.html")
def show_tenant(tenant_id: UUID, state: State, visitor: CurrentVisitor, _: OnlyOperators) -> Read:
    is_own = tenant_id == visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        tenant = tenants.get(state, tenant_id)
        erasure = tenants.get_erasure(state, tenant_id) if tenant.erased_at else None
        return {"tenant": tenant, "erasure": erasure, "tiers": list(Tier), "is_own": is_own}

    return read


class TenantForm(BaseModel):
    """The settings of a tenant as a form sends them. No tier: all of them. A limit a line, as `waiting_images=1000`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    weight: str = "1"
    tiers: list[Tier] = []
    limits: str = ""
    keep_pictures_days: str | None = None
    keep_rows_days: str | None = None

    @field_validator("keep_pictures_days", "keep_rows_days", mode="before")
    @classmethod
    def _empty_to_none(cls, value: Any) -> Any:
        return (value.strip() or None) if isinstance(value, str) else value

    def settings(self) -> dict[str, Any]:
        """Raises Invalid for a line that is no limit."""
        return {
            **self.model_dump(exclude={"limits", "tiers"}),
            "tiers": self.tiers or None,
            "limits": dict(map(read_limit, filter(str.strip, self.limits.splitlines()))),
        }


def read_limit(line: str) -> tuple[str, int]:
    name, _, value = line.partition("=")
    if not (value.strip().isascii() and value.strip().isdigit()):
        raise Invalid.field("limits", sentence("limit_unreadable", line=line[:100]))
    return name.strip(), int(value)


@router.post("/tenants")
def create_tenant(
    request: Request, form: Annotated[TenantForm, Form()], visitor: CurrentOperator, state: State
) -> Response:
    """The only response with the secret of its first key."""
    try:
        new = NewTenant(**form.settings(), key=FIRST_KEY)
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None
    tenant = tenants.create(state, visitor.caller, new)
    return render_notice(request, "new_tenant.html", tenant=tenant)


@router.post("/tenants/{tenant_id}")
def change_tenant(
    request: Request, tenant_id: UUID, form: Annotated[TenantForm, Form()], visitor: CurrentOperator, state: State
) -> Response:
    """A limit that the form does not have any more is that of the farm again."""
    removed = dict.fromkeys(tenants.get(state, tenant_id).limits)
    settings = form.settings()
    try:
        wanted = TenantChange(**settings | {"limits": removed | settings["limits"]})
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None
    tenants.change(state, visitor.caller, tenant_id, wanted)
    return render_notice(request, "farm_notice.html", action="change-tenant")


@router.post("/tenants/{tenant_id}/suspend")
def suspend_tenant(request: Request, tenant_id: UUID, visitor: CurrentOperator, state: State) -> Response:
    tenants.suspend(state, visitor.caller, tenant_id)
    return render_notice(request, "farm_notice.html", action="suspend-tenant")


@router.post("/tenants/{tenant_id}/resume")
def resume_tenant(request: Request, tenant_id: UUID, visitor: CurrentOperator, state: State) -> Response:
    tenants.resume(state, visitor.caller, tenant_id)
    return render_notice(request, "farm_notice.html", action="resume-tenant")


@router.post("/tenants/{tenant_id}/erase")
def erase_tenant(
    request: Request,
    tenant_id: UUID,
    visitor: CurrentOperator,
    state: State,
    name: Annotated[str, Form(max_length=100)] = "",
) -> Response:
    """`name`: as somebody has typed it, to confirm it."""
    if name != tenants.get(state, tenant_id).name:
        raise Invalid.field("name", sentence("name_differs"))
    tenants.erase(state, visitor.caller, tenant_id)
    return render_notice(request, "farm_notice.html", action="erase-tenant")
