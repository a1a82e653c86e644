"""Administration: the models and their licences, the API keys, and the audit of who did what."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from pydantic import field_validator
from sqlalchemy import Connection

from api.dashboard import sentence
from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentActor, CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import AllTenants, State
from api.pagination import Paging
from api.queries.audit import find_audit_records
from api.queries.keys import Key, find_keys
from api.queries.models import find_models
from api.queries.safety import DAYS, find_flagged
from api.services import keys, models
from api.services.audit import get_page
from api.services.keys import KeyRequest
from common.accounts.keys import Caller
from common.db import transaction
from common.errors import Forbidden

router = APIRouter()

SHOWN_RECORDS = 10  # of the audit, on the page of the keys


@view(router, "/admin", "admin.html")
def admin(state: State, visitor: CurrentVisitor) -> Read:
    """A viewer sees the models only: keys and the audit need the scope admin, as in the API.

    What the safety checker flagged is for the operator.
    """
    tenant_id, may_act = visitor.caller.tenant_id, visitor.may_act

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            return {
                "flagged": find_flagged(connection) if visitor.runs_farm else [],
                "days": DAYS,
                "models": find_models(connection, tenant_id, state.catalog, state.default_model),
                "keys": valid_keys_first(connection, tenant_id) if may_act else [],
                "all_tenants": False,
                "records": find_audit_records(connection, tenant_id, None, SHOWN_RECORDS) if may_act else [],
            }

    return read


def audit_reader(visitor: CurrentVisitor, all_tenants: AllTenants = False) -> Caller:
    """As `api.deps.audit_reader`."""
    if all_tenants:
        visitor.caller.require_operator()
    elif not visitor.may_act:
        raise Forbidden(sentence("scope_admin_missing"))
    return replace(visitor.caller, all_tenants=all_tenants)


@view(router, "/admin/audit", "audit.html")
def audit(paging: Annotated[Paging, Query()], state: State, caller: Annotated[Caller, Depends(audit_reader)]) -> Read:
    def read() -> dict[str, Any]:
        records, cursor = get_page(state, caller, paging)
        return {"records": records, "cursor": cursor, "paging": paging, "all_tenants": caller.all_tenants}

    return read


class KeyForm(KeyRequest):
    """A key as a form sends it: an empty field is none, a day begins in UTC."""

    @field_validator("expires_at", mode="before")
    @classmethod
    def _in_utc(cls, value: Any) -> Any:
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC) if value else None
        except (TypeError, ValueError):
            return value


@router.post("/admin/keys")
def create_key(request: Request, new: Annotated[KeyForm, Form()], visitor: CurrentActor, state: State) -> Response:
    """The only response with the secret. No stream of pages has it."""
    key = keys.create_key(state, visitor.caller, new)
    return render_notice(request, "new_key.html", name=new.name, secret=key.secret)


@router.post("/admin/keys/{key_id}/revoke")
def revoke_key(request: Request, key_id: UUID, visitor: CurrentActor, state: State) -> Response:
    keys.revoke_key(state, visitor.caller, key_id)
    return render_notice(request, "farm_notice.html", action="revoke-key")


@router.post("/admin/models/{name}/licence")
def accept_licence(
    request: Request, name: str, version: Annotated[str, Form()], visitor: CurrentActor, state: State
) -> Response:
    models.accept_licence(state, visitor.caller, name, version)
    return render_notice(request, "farm_notice.html", action="accept-licence")


def valid_keys_first(connection: Connection, tenant_id: UUID) -> Sequence[Key]:
    """Valid keys, then revoked ones; each newest first."""
    newest_first = find_keys(connection, tenant_id)[::-1]
    return sorted(newest_first, key=lambda key: key.revoked_at is not None)
