"""Batches over HTTP: submit, read, list, pause, resume, cancel, change tier, retry what failed. Decides nothing."""

from json import JSONDecodeError
from typing import Annotated
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import long_json, sentence
from api.bodies import Rule, is_json
from api.deps import BaseUrl, BatchesWriter, JobsReader, RequestId, State
from api.errors import Problem
from api.headers import IdempotencyKeyHeader, with_etag
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.batches import BATCH, Batch
from api.schemas import example, request_body
from api.services import batch_dry_run, batches, bulk, deletion
from api.services.batch_dry_run import BatchDryRun
from api.services.batch_request import EXAMPLES, BatchRequest
from common.enums import Scope, Tier

router = APIRouter(tags=["batches"])

PATH = "/v1/batches"
LONG_BODY_BYTES = 100_000
BODY_RULE = Rule(10_000_000, scopes=(Scope.BATCHES_WRITE,))


class BatchPage(BaseModel):
    model_config = example({"items": [BATCH], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Batch]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class NewBatchTier(BaseModel):
    """How urgent the batch is from now on."""

    model_config = ConfigDict(extra="forbid")

    tier: Tier = Field(examples=["interactive"])


class TierChange(BaseModel):
    """What became of a change of tier."""

    model_config = example({"batch": BATCH, "changed": 1000, "goes_on": False})

    batch: Batch
    changed: int = Field(description="Jobs, by this request.")
    goes_on: bool = Field(description="Whether other jobs are left: repeat the request.")


async def receive_batch(request: Request, caller: BatchesWriter, state: State) -> BatchRequest:
    """The body, which may be a million prompts: parsed in a thread, and one long body at a time."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, sentence("body_incomplete")) from None
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    if not is_json(request):
        raise RequestValidationError([], body=body)
    limiter = state.parse_limiter if len(body) > LONG_BODY_BYTES else None
    return await anyio.to_thread.run_sync(parse, body, limiter=limiter)


def parse(body: bytes) -> BatchRequest:
    """Raises Invalid or RequestValidationError."""
    try:
        return BatchRequest.model_validate(long_json.read(body))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, JSONDecodeError) else sentence("json_unreadable")
        wrong = {"type": "json_invalid", "loc": ("body",), "msg": "JSON decode error", "ctx": {"error": reason}}
        raise RequestValidationError([wrong]) from None


NewBatch = Annotated[BatchRequest, Depends(receive_batch)]


@router.post(
    PATH,
    operation_id="submitBatch",
    summary="Submit a batch",
    status_code=201,
    response_model=Batch,
    responses={
        200: {"model": BatchDryRun, "description": "What it would become, of a `dry_run`."},
        429: {"model": Problem, "description": "Another dry run of the tenant is in progress."},
    },
    openapi_extra=request_body(BatchRequest, EXAMPLES),
)
async def submit_batch(
    new: NewBatch,
    caller: BatchesWriter,
    state: State,
    base_url: BaseUrl,
    request_id: RequestId,
    response: Response,
    dry_run: Annotated[bool, Query(description="Answer what it would become; store nothing.")] = False,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Batch | Response:
    """Answered at once: its prompts are checked and become jobs later. If one of them cannot be rendered, none is: the
    batch ends, and its `error` names the lines; with `skip_bad`, such lines are left out instead.

    A dry run checks the prompts for three seconds at most: all of them, or the first ones of a larger file. A tenant
    has one at a time: another one waits up to four seconds for it, and is then answered with 429 and `Retry-After`.
    """
    if dry_run:
        async with state.dry_run_turns.of(caller.tenant_id):
            limiter = state.dry_run_limiter
            found = await anyio.to_thread.run_sync(batch_dry_run.dry_run, state, caller, new, limiter=limiter)
        return Response(found.model_dump_json(), media_type="application/json")
    batch, is_new = await anyio.to_thread.run_sync(
        batches.submit,
        state,
        caller,
        new,
        idempotency_key,
        request_id,
        limiter=state.inline_limiter if new.prompts else None,
    )
    response.headers["Location"] = f"{base_url}v1/batches/{batch.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return batch


@router.get("/v1/batches", operation_id="listBatches", summary="List batches, newest first")
def list_batches(
    paging: Annotated[Paging, Query()], caller: JobsReader, state: State, request: Request, response: Response
) -> BatchPage:
    page, cursor = batches.get_page(state, caller, paging)
    response.headers.update(next_link(request, cursor))
    return BatchPage(items=page, next_cursor=cursor)


@router.get(
    "/v1/batches/{batch_id}",
    operation_id="readBatch",
    summary="Read a batch",
    response_model=Batch,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_batch(batch_id: UUID, caller: JobsReader, state: State, request: Request) -> Response:
    return with_etag(request, batches.get(state, caller, batch_id))


@router.post("/v1/batches/{batch_id}/pause", operation_id="pauseBatch", summary="Pause a batch")
def pause_batch(batch_id: UUID, caller: BatchesWriter, state: State) -> Batch:
    """Images in progress are finished, and no others are started. Pausing it again changes nothing."""
    batches.pause(state, caller, batch_id)
    return batches.get(state, caller, batch_id)


@router.post("/v1/batches/{batch_id}/resume", operation_id="resumeBatch", summary="Resume a batch")
def resume_batch(batch_id: UUID, caller: BatchesWriter, state: State) -> Batch:
    """A batch that is not paused stays as it is."""
    batches.resume(state, caller, batch_id)
    return batches.get(state, caller, batch_id)


@router.post("/v1/batches/{batch_id}/cancel", operation_id="cancelBatch", summary="Cancel a batch")
def cancel_batch(batch_id: UUID, caller: BatchesWriter, state: State) -> Batch:
    """At once and for good: no more images of it are started or appear; stored images stay.

    It is `ended` from then on. Its jobs are settled later; it has a `finished_at` once that is done.
    """
    batches.cancel(state, caller, batch_id)
    return batches.get(state, caller, batch_id)


@router.post("/v1/batches/{batch_id}/tier", operation_id="changeBatchTier", summary="Change the tier of a batch")
def change_batch_tier(batch_id: UUID, new: NewBatchTier, caller: BatchesWriter, state: State) -> TierChange:
    """Images that wait go on waiting in the new tier; images that a worker holds are finished as they are; jobs that it
    gets later have the new tier. Of a large batch one request changes 10,000 jobs at most, or as many as five seconds
    allow: repeat it while `goes_on`. 409 when the batch has ended.
    """
    report = bulk.change_tier_of_batch(state, caller, batch_id, new.tier)
    batch = batches.get(state, caller, batch_id)
    return TierChange(batch=batch, changed=report.changed, goes_on=report.after is not None)


@router.post(
    "/v1/batches/{batch_id}/retry-failed",
    operation_id="retryFailedOfBatch",
    summary="Retry what failed of a batch",
    status_code=201,
)
def retry_failed(batch_id: UUID, caller: BatchesWriter, state: State, base_url: BaseUrl, response: Response) -> Batch:
    """A new batch that names its parent, with the same recipes and seeds: the failed images of each job, without those
    that the safety checker held back. Until the new batch has ended, another request answers with it again. 409 if
    nothing failed, or while the parent has not ended. A dataset of the parent includes the new pictures.
    """
    retry_id, is_new = batches.retry_failed(state, caller, batch_id)
    response.headers["Location"] = f"{base_url}v1/batches/{retry_id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return batches.get(state, caller, retry_id)


@router.delete(
    "/v1/batches/{batch_id}",
    operation_id="deleteBatch",
    summary="Delete a batch, its jobs and their pictures",
    status_code=204,
)
def delete_batch(batch_id: UUID, caller: BatchesWriter, state: State) -> None:
    """Hidden at once with all its jobs, and cancelled before if it has not ended. Up to 5,000 pictures are gone within
    a minute. Its retries, its datasets (then `stale`) and its upload stay; a dataset that is still written fails. A
    `GET` of its id is answered with 410 and the tombstone: when it was deleted, by which key, and how many of its
    pictures are still in the image store. To delete it again changes nothing.
    """
    deletion.delete_batch(state, caller, batch_id)
