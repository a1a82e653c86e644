"""Batches over HTTP: submit, look, list, pause, resume, cancel. `api.services.batches` understands what is submitted,
`common.batches.lifecycle` does it, `api.queries.batches` shows it.

Nothing here looks at a prompt: a control worker checks and expands what was submitted, a chunk at a time.
"""

from typing import Annotated
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import AppState, BaseUrl, BatchesWriter, JobsReader, RequestId, State
from api.headers import IdempotencyKey, with_etag
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.batches import BATCH, Batch, find_batch, find_batches
from api.schemas import example
from api.services import actions
from api.services.batch_dry_run import BatchDryRun, run_dry
from api.services.batches import EXAMPLES, BatchRequest, fingerprint, keep_inline, plan_of
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.tenants import Caller
from common.batches import lifecycle as batches
from common.db import new_id, transaction
from common.log import log_event
from common.queue import idempotency

router = APIRouter(tags=["batches"])

PATH = "/v1/batches"
ROUTE = f"POST {PATH}"
MAX_BODY_BYTES = 10_000_000


class BatchPage(BaseModel):
    model_config = example({"items": [BATCH], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Batch]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


@router.post(
    PATH,
    operation_id="submitBatch",
    summary="Submit a batch",
    status_code=201,
    response_model=Batch,
    responses={200: {"model": BatchDryRun, "description": "What it would become, of a `dry_run`."}},
)
async def submit_batch(
    draft: Annotated[BatchRequest, Body(openapi_examples=EXAMPLES)],
    caller: BatchesWriter,
    farm: State,
    base_url: BaseUrl,
    request_id: RequestId,
    request: Request,
    response: Response,
    dry_run: Annotated[bool, Query(description="Only say what it would become; nothing is stored.")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Batch | Response:
    """Answered at once: its prompts are checked, and become jobs, later. If one of them cannot be rendered, none is:
    the batch ends, and its `error` names the lines; unless `skip_bad` says to leave such lines out.

    A dry run looks at the prompts itself, for three seconds at most: at all of them, or at the first of a larger file.
    """
    if dry_run:
        limiter = request.app.state.upload_limiter
        found = await anyio.to_thread.run_sync(run_dry, farm, caller, draft, limiter=limiter)
        return Response(found.model_dump_json(), media_type="application/json")
    # Prompts go to the image store, in threads of their own: while that is slow, all else stays fast.
    limiter = request.app.state.upload_limiter if draft.prompts else None
    batch, is_new = await anyio.to_thread.run_sync(
        submit, farm, caller, draft, idempotency_key, request_id, limiter=limiter
    )
    response.headers["Location"] = f"{base_url}v1/batches/{batch.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return batch


def submit(
    farm: AppState, caller: Caller, draft: BatchRequest, idempotency_key: str | None, request_id: str
) -> tuple[Batch, bool]:
    """The batch of this draft, and whether it is new: committed first, then sent."""
    plan, batch_id = plan_of(farm, caller, draft), new_id()
    once = idempotency.IdempotencyKey(ROUTE, idempotency_key, fingerprint(draft)) if idempotency_key else None
    if once:  # its prompts may be stored already
        with transaction(farm.autocommit) as connection:
            earlier = idempotency.find_result(connection, caller.tenant_id, once)
        if earlier:
            return look(farm, caller, earlier), False
    farm.acceptances.require(caller.tenant_id, map(farm.catalog.get, plan.models))
    upload_id = keep_inline(farm, caller, draft.prompts) if draft.prompts else draft.upload
    assert upload_id  # the draft has one of the two
    with transaction(farm.engine) as connection:
        earlier = idempotency.claim_key(connection, caller.tenant_id, once, batch_id) if once else None
        if earlier is None:
            batches.submit(
                connection,
                caller.tenant_id,
                upload_id,
                plan,
                tier=draft.tier,
                name=draft.name,
                stop_rule=draft.stop_rule,
                request_id=request_id,
                batch_id=batch_id,
            )
            audit.record(connection, caller, Action.SUBMIT_BATCH, batch_id, name=draft.name)
    if earlier is None:
        farm.messages.advance(batch_id)
        log_event("batch_submitted", batch=batch_id, tenant=caller.tenant_id, request=request_id)
    return look(farm, caller, earlier or batch_id), earlier is None


def look(farm: AppState, caller: Caller, batch_id: UUID) -> Batch:
    with transaction(farm.autocommit) as connection:
        return find_batch(connection, caller.tenant_id, batch_id)


@router.get("/v1/batches", operation_id="listBatches", summary="List batches, newest first")
def list_batches(
    paging: Annotated[Paging, Query()], caller: JobsReader, farm: State, request: Request, response: Response
) -> BatchPage:
    with transaction(farm.autocommit) as connection:
        found = find_batches(connection, caller.tenant_id, paging.before, paging.limit + 1)
    page, cursor = paging.cut(found)
    response.headers.update(next_link(request, cursor))
    return BatchPage(items=page, next_cursor=cursor)


@router.get(
    "/v1/batches/{batch_id}",
    operation_id="readBatch",
    summary="Look at a batch",
    response_model=Batch,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_batch(batch_id: UUID, caller: JobsReader, farm: State, request: Request) -> Response:
    return with_etag(request, look(farm, caller, batch_id))


@router.post("/v1/batches/{batch_id}/pause", operation_id="pauseBatch", summary="Pause a batch")
def pause_batch(batch_id: UUID, caller: BatchesWriter, farm: State) -> Batch:
    """What is being rendered is finished, and nothing more is begun. Again changes nothing."""
    actions.pause_batch(farm, caller, batch_id)
    return look(farm, caller, batch_id)


@router.post("/v1/batches/{batch_id}/resume", operation_id="resumeBatch", summary="Resume a batch")
def resume_batch(batch_id: UUID, caller: BatchesWriter, farm: State) -> Batch:
    """One that is not paused goes on as it did."""
    actions.resume_batch(farm, caller, batch_id)
    return look(farm, caller, batch_id)


@router.post("/v1/batches/{batch_id}/cancel", operation_id="cancelBatch", summary="Cancel a batch")
def cancel_batch(batch_id: UUID, caller: BatchesWriter, farm: State) -> Batch:
    """At once and for good: nothing more of it is begun, and no image of it appears any more; what is stored stays.

    It is `ended` from then on. Its jobs are settled one after the other; when that is done it has a `finished_at`.
    """
    actions.cancel_batch(farm, caller, batch_id)
    return look(farm, caller, batch_id)


@router.post(
    "/v1/batches/{batch_id}/retry-failed",
    operation_id="retryFailedOfBatch",
    summary="Draw again what failed of a batch",
    status_code=201,
)
def retry_failed(batch_id: UUID, caller: BatchesWriter, farm: State, base_url: BaseUrl, response: Response) -> Batch:
    """A new batch that names its parent, with the same recipes and seeds: of each job the images that failed, and none
    that the safety checker refused. Again gives the same one while it goes on; 409 where nothing failed, or while the
    parent has not ended. A dataset of the parent has its pictures too.
    """
    made, is_new = actions.retry_failed(farm, caller, batch_id)
    response.headers["Location"] = f"{base_url}v1/batches/{made}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return look(farm, caller, made)
