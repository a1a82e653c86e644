"""Administration: the models and their licences, the API keys, and the audit of who did what."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from sqlalchemy import Connection, text

from api.dashboard import sentence
from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentActor, CurrentVisitor, Visitor
from api.dashboard.view import Read, view
from api.deps import State
from api.pagination import Paging
from api.queries.keys import Key, find_keys
from api.queries.models import find_models
from api.queries.safety import DAYS, find_flagged
from api.schemas import KeyRequest
from api.services import admin as service
from common.accounts.tenants import is_operator
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
            runs_farm = is_operator(connection, visitor.caller)
            return {
                "runs_farm": runs_farm,
                "flagged": find_flagged(connection) if runs_farm else [],
                "days": DAYS,
                "models": find_models(connection, tenant_id, state.catalog, state.default_model),
                "keys": valid_keys_first(connection, tenant_id) if may_act else [],
                "records": find_audit_records(connection, tenant_id, None, SHOWN_RECORDS) if may_act else [],
            }

    return read


def require_admin(visitor: CurrentVisitor) -> Visitor:
    if not visitor.may_act:
        raise Forbidden(sentence("scope_admin_missing"))
    return visitor


@view(router, "/admin/audit", "audit.html")
def audit(
    paging: Annotated[Paging, Query()], state: State, visitor: Annotated[Visitor, Depends(require_admin)]
) -> Read:
    tenant_id = visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            found = find_audit_records(connection, tenant_id, paging.before, paging.limit + 1)
        records, cursor = paging.cut(found)
        return {"records": records, "cursor": cursor, "paging": paging}

    return read


@router.post("/admin/keys")
def create_key(request: Request, new: Annotated[KeyRequest, Form()], visitor: CurrentActor, state: State) -> Response:
    """The only response with the secret. No stream of pages has it."""
    key = service.create_key(state, visitor.caller, new)
    return render_notice(request, "new_key.html", name=new.name, secret=key.secret)


@router.post("/admin/keys/{key_id}/revoke")
def revoke_key(request: Request, key_id: UUID, visitor: CurrentActor, state: State) -> Response:
    service.revoke_key(state, visitor.caller, key_id)
    return render_notice(request, "farm_notice.html", action="revoke-key")


@router.post("/admin/models/{name}/licence")
def accept_licence(
    request: Request, name: str, version: Annotated[str, Form()], visitor: CurrentActor, state: State
) -> Response:
    service.accept_licence(state, visitor.caller, name, version)
    return render_notice(request, "farm_notice.html", action="accept-licence")


def valid_keys_first(connection: Connection, tenant_id: UUID) -> Sequence[Key]:
    """Valid keys, then revoked ones; each newest first."""
    newest_first = find_keys(connection, tenant_id)[::-1]
    return sorted(newest_first, key=lambda key: key.revoked_at is not None)


@dataclass(frozen=True)
class AuditRecord:
    """`action`: a `common.accounts.audit.Action`. `subject`: an id or a name; None for all jobs of a filter."""

    id: UUID
    at: datetime
    key_id: UUID
    key: str  # its name
    via: str
    action: str
    subject: str | None
    detail: dict[str, Any]
    request_id: str | None


def find_audit_records(
    connection: Connection, tenant_id: UUID, before: UUID | None, limit: int
) -> Sequence[AuditRecord]:
    """The newest first: those older than `before`."""
    page = {"tenant": tenant_id, "before": before or UUID(int=2**128 - 1), "limit": limit}
    return [AuditRecord(**row._mapping) for row in connection.execute(AUDIT_RECORDS, page)]


# Read a page of a tenant's audit, with the names of the keys.
AUDIT_RECORDS = text("""
    SELECT record.id, record.at, record.key_id, api_keys.name AS key, record.via, record.action, record.subject,
           record.detail, record.request_id
    FROM audit AS record JOIN api_keys ON api_keys.id = record.key_id
    WHERE record.tenant_id = :tenant AND record.id < :before ORDER BY record.id DESC LIMIT :limit
""")
