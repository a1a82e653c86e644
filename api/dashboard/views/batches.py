"""Batches: how far each has come, what went wrong, and the way to its pictures. The actions are those of the API."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response

from api.dashboard.queries.batches import find_failure_groups, find_thumbnails
from api.dashboard.rendering import notice
from api.dashboard.sessions import TheActor, TheVisitor
from api.dashboard.view import Read, view
from api.deps import AppState, RequestId, State
from api.pagination import Paging
from api.queries.batches import find_batch, find_batches
from api.queries.datasets import find_datasets
from api.schemas import DatasetRequest
from api.services import batches, datasets
from common.accounts.tenants import Caller
from common.datasets.layout import Layout
from common.db import transaction

router = APIRouter()

PAGE = 20
SHOWN_DATASETS = 10


class BatchPaging(Paging):
    limit: int = PAGE


@view(router, "/batches", "batches.html")
def list_batches(paging: Annotated[BatchPaging, Query()], visitor: TheVisitor, farm: State) -> Read:
    tenant_id = visitor.caller.tenant_id

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            page, cursor = paging.cut(find_batches(connection, tenant_id, paging.before, paging.limit + 1))
            strips = find_thumbnails(connection, tenant_id, [batch.id for batch in page], 6)
        return {"batches": page, "strips": strips, "cursor": cursor, "is_first": paging.cursor is None}

    return look


@view(router, "/batches/{batch_id}", "batch.html")
def show_batch(batch_id: UUID, visitor: TheVisitor, farm: State) -> Read:
    tenant_id = visitor.caller.tenant_id

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            return {
                "batch": find_batch(connection, tenant_id, batch_id),
                "pictures": find_thumbnails(connection, tenant_id, [batch_id]).get(batch_id, ()),
                "troubles": find_failure_groups(connection, tenant_id, batch_id),
                "datasets": find_datasets(connection, tenant_id, batch_id, None, SHOWN_DATASETS),
                "layouts": get_args(Layout),
            }

    return look


ACTIONS: dict[str, Callable[[AppState, Caller, UUID], object]] = {
    "pause": batches.pause,
    "resume": batches.resume,
    "cancel": batches.cancel,
}


@router.post("/batches/{batch_id}/export")
def export_batch(
    batch_id: UUID,
    actor: TheActor,
    farm: State,
    request: Request,
    request_id: RequestId,
    layout: Annotated[Layout, Form()] = "webdataset",
    test_percent: Annotated[float, Form(ge=0, le=90)] = 0,
) -> Response:
    splits = {"test": test_percent / 100} if test_percent else {}
    draft = DatasetRequest(batch=batch_id, layout=layout, splits=splits)
    datasets.submit(farm, actor.caller, draft, None, request_id)
    return notice(request, "batch_notice.html", did="export")


@router.post("/batches/{batch_id}/retry-failed")
def retry_failed(batch_id: UUID, actor: TheActor, farm: State, request: Request) -> Response:
    made_id, _ = batches.retry_failed(farm, actor.caller, batch_id)
    return notice(request, "batch_notice.html", did="retry-failed", made_id=made_id)


@router.post("/batches/{batch_id}/{action}")
def act_on_batch(
    batch_id: UUID, action: Literal["pause", "resume", "cancel"], actor: TheActor, farm: State, request: Request
) -> Response:
    ACTIONS[action](farm, actor.caller, batch_id)
    return notice(request, "batch_notice.html", did=action)
