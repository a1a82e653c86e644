"""Administration: models and their licences, API keys, and the audit of who did what."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Query, Request, Response

from api.dashboard.queries.admin import find_keys
from api.dashboard.queries.audit import find_notes
from api.dashboard.rendering import notice
from api.dashboard.sessions import TheActor, TheVisitor, Visitor
from api.dashboard.view import Read, view
from api.deps import State
from api.pagination import Paging
from api.queries.models import find_models
from api.schemas import KeyRequest
from api.services import admin as service
from common.db import transaction
from common.errors import Forbidden

router = APIRouter()

LATEST = 10  # notes of the audit that are shown beside the keys


@view(router, "/admin", "admin.html")
def admin(farm: State, visitor: TheVisitor) -> Read:
    """Who may only look sees the models, as by the API: keys and the audit are for administrators."""
    tenant_id, may_act = visitor.caller.tenant_id, visitor.may_act

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            return {
                "models": find_models(connection, tenant_id, farm.catalog, farm.default_model),
                "keys": find_keys(connection, tenant_id) if may_act else [],
                "notes": find_notes(connection, tenant_id, None, LATEST) if may_act else [],
            }

    return look


def administrator(visitor: TheVisitor) -> Visitor:
    if not visitor.may_act:
        raise Forbidden("This API key lacks the scope admin.")
    return visitor


@view(router, "/admin/audit", "audit.html")
def audit(paging: Annotated[Paging, Query()], farm: State, visitor: Annotated[Visitor, Depends(administrator)]) -> Read:
    tenant_id = visitor.caller.tenant_id

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            found = find_notes(connection, tenant_id, paging.before, paging.limit + 1)
        notes, cursor = paging.cut(found)
        return {"notes": notes, "cursor": cursor, "paging": paging}

    return look


@router.post("/admin/keys")
def create_key(request: Request, new: Annotated[KeyRequest, Form()], visitor: TheActor, farm: State) -> Response:
    """The one answer that holds the secret: it goes to the page of who asked, and to no stream."""
    key = service.create_key(farm, visitor.caller, new)
    return notice(request, "new_key.html", name=new.name, secret=key.secret)


@router.post("/admin/keys/{key_id}/revoke")
def revoke_key(request: Request, key_id: UUID, visitor: TheActor, farm: State) -> Response:
    service.revoke_key(farm, visitor.caller, key_id)
    return notice(request, "notice_farm.html", done="revoked")


@router.post("/admin/models/{name}/licence")
def accept_licence(
    request: Request, name: str, version: Annotated[str, Form()], visitor: TheActor, farm: State
) -> Response:
    service.accept_licence(farm, visitor.caller, name, version)
    return notice(request, "notice_farm.html", done="accepted")
