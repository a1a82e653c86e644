"""Batches: their progress, their failures and their newest images. The actions are those of the API."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy import Connection, text

from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentActor, CurrentVisitor
from api.dashboard.view import Read, view
from api.dashboard.views.images import IMAGE_COLUMNS, StoredImage, stored_image
from api.dashboard.views.new_job import parse_number
from api.deps import AppState, RequestId, State
from api.pagination import Paging
from api.queries.batches import find_batch, find_batches
from api.queries.datasets import find_datasets
from api.services import batches, datasets
from api.services.datasets import DatasetRequest
from common.accounts.keys import Caller
from common.datasets.layout import ImageFormat, Layout
from common.db import transaction
from common.errors import Invalid, wrong_fields
from common.queue.lanes import EXACT

router = APIRouter()

PAGE = 20
SHOWN_DATASETS = 10


class BatchPaging(Paging):
    limit: int = PAGE


@view(router, "/batches", "batches.html")
def list_batches(paging: Annotated[BatchPaging, Query()], visitor: CurrentVisitor, state: State) -> Read:
    tenant_id = visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            page, cursor = paging.cut(find_batches(connection, tenant_id, paging.before, paging.limit + 1))
            thumbnails = find_thumbnails(connection, tenant_id, [batch.id for batch in page], 6)
        return {"batches": page, "thumbnails": thumbnails, "cursor": cursor, "is_first": paging.cursor is None}

    return read


@view(router, "/batches/{batch_id}", "batch.html")
def show_batch(batch_id: UUID, visitor: CurrentVisitor, state: State) -> Read:
    tenant_id = visitor.caller.tenant_id

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            return {
                "batch": find_batch(connection, tenant_id, batch_id),
                "thumbnails": find_thumbnails(connection, tenant_id, [batch_id]).get(batch_id, ()),
                "failure_groups": find_failure_groups(connection, tenant_id, batch_id),
                "datasets": find_datasets(connection, tenant_id, batch_id, None, SHOWN_DATASETS),
                "layouts": get_args(Layout),
                "image_formats": get_args(ImageFormat),
            }

    return read


ACTIONS: dict[str, Callable[[AppState, Caller, UUID], object]] = {
    "pause": batches.pause,
    "resume": batches.resume,
    "cancel": batches.cancel,
}


@router.post("/batches/{batch_id}/export")
def export_batch(
    batch_id: UUID,
    actor: CurrentActor,
    state: State,
    request: Request,
    request_id: RequestId,
    layout: Annotated[Layout, Form()] = "webdataset",
    test_percent: Annotated[float, Form(ge=0, le=90)] = 0,
    where: Annotated[str, Form()] = "",
    image_format: Annotated[ImageFormat | Literal[""], Form()] = "",
    resize: Annotated[str, Form()] = "",
) -> Response:
    splits = {"test": test_percent / 100} if test_percent else {}
    given = {"where": where, "image_format": image_format, "resize": parse_number(resize, int)}
    try:
        wanted = DatasetRequest(
            batch=batch_id, layout=layout, splits=splits, **{name: value for name, value in given.items() if value}
        )
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None
    datasets.submit(state, actor.caller, wanted, None, request_id)
    return render_notice(request, "batch_notice.html", action="export")


@router.post("/batches/{batch_id}/retry-failed")
def retry_failed(batch_id: UUID, actor: CurrentActor, state: State, request: Request) -> Response:
    retry_id, _ = batches.retry_failed(state, actor.caller, batch_id)
    return render_notice(request, "batch_notice.html", action="retry-failed", retry_id=retry_id)


@router.post("/batches/{batch_id}/{action}")
def act_on_batch(
    batch_id: UUID, action: Literal["pause", "resume", "cancel"], actor: CurrentActor, state: State, request: Request
) -> Response:
    ACTIONS[action](state, actor.caller, batch_id)
    return render_notice(request, "batch_notice.html", action=action)


@dataclass(frozen=True)
class FailureGroup:
    """The images of a batch that failed with one error code, with the newest of them as the example."""

    code: str
    count: int
    message: str
    image_id: UUID
    job_id: UUID
    prompt: str


def find_failure_groups(connection: Connection, tenant_id: UUID, batch_id: UUID) -> Sequence[FailureGroup]:
    """The most frequent first, of the 1,000 images that failed last."""
    rows = connection.execute(FAILURE_GROUPS, {"tenant": tenant_id, "batch": batch_id, "limit": 1000})
    return [FailureGroup(**row._mapping) for row in rows]


def find_thumbnails(
    connection: Connection, tenant_id: UUID, batch_ids: Sequence[UUID], limit: int = 12
) -> dict[UUID, list[StoredImage]]:
    """The newest images of each of these batches."""
    found: dict[UUID, list[StoredImage]] = {batch_id: [] for batch_id in batch_ids}
    for row in connection.execute(THUMBNAILS, {"tenant": tenant_id, "batches": list(batch_ids), "limit": limit}):
        found[row.batch_id].append(stored_image(row))
    return found


# Group the newest failed images of a batch by error code.
FAILURE_GROUPS = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT image.* FROM {EXACT} AS lanes CROSS JOIN LATERAL (
            SELECT id, job_id, error_code, error_message, finished_at FROM images
            WHERE images.lane_id = lanes.id AND images.state = 'failed'
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        WHERE lanes.batch_id = :batch AND lanes.tenant_id = :tenant AND lanes.failed > 0
        ORDER BY finished_at DESC, id DESC LIMIT :limit),
    example AS (
        SELECT DISTINCT ON (error_code) *, count(*) OVER (PARTITION BY error_code) AS count
        FROM newest ORDER BY error_code, finished_at DESC, id DESC)
    SELECT example.error_code AS code, example.count, coalesce(example.error_message, '') AS message,
           example.id AS image_id, example.job_id, jobs.recipe ->> 'prompt' AS prompt
    FROM example JOIN jobs ON jobs.id = example.job_id ORDER BY count DESC, code
""")

# Find the newest stored images of each batch.
THUMBNAILS = text(f"""
    WITH images AS MATERIALIZED (
        SELECT newest.* FROM unnest(cast(:batches AS uuid[])) AS batch(id) CROSS JOIN LATERAL (
            SELECT image.* FROM {EXACT} AS lanes CROSS JOIN LATERAL (
                SELECT id, job_id, index, bytes, finished_at FROM images
                WHERE images.lane_id = lanes.id AND images.state = 'stored' AND images.picture_deleted_at IS NULL
                    AND images.finished_at >= coalesce(lanes.pictures_kept_from, '-infinity')
                ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
            WHERE lanes.batch_id = batch.id AND lanes.tenant_id = :tenant AND lanes.stored > lanes.deleted_stored
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS newest)
    SELECT {IMAGE_COLUMNS} FROM images JOIN jobs ON jobs.id = images.job_id
    ORDER BY images.finished_at DESC, images.id DESC
""")
