"""Jobs over HTTP: submit, read, list, cancel, change tier, retry. `api.services.jobs` does it."""

from contextlib import nullcontext
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.deps import AnyJobsReader, AnyJobsWriter, BaseUrl, JobsWriter, RequestId, State
from api.headers import CancelAfter, IdempotencyKeyHeader, Prefer, seconds_to_live, seconds_to_wait, with_etag
from api.pagination import next_link
from api.schemas import Job, JobPage, JobQuery, JobRequest
from api.services import deletion, jobs
from api.services.jobs import DryRun
from common.enums import Tier

router = APIRouter(tags=["jobs"])

EXAMPLES = {
    "short": {"summary": "The minimum", "value": {"prompt": "红色的圆形"}},
    "full": {
        "summary": "Every field",
        "value": {
            "prompt": "女孩们打开了另一世界的大门",
            "negative_prompt": "水印",
            "model": "zh-v0",
            "width": 512,
            "height": 512,
            "steps": 50,
            "scheduler": "lms",
            "guidance": 7.5,
            "count": 4,
            "seed": 42,
            "lora": [{"name": "ink", "weight": 0.8}],
            "format": "png",
            "tier": "interactive",
        },
    },
    "image2image": {
        "summary": "Change a picture: an upload, or an image that was stored",
        "value": {
            "prompt": "女孩们打开了另一世界的大门，水彩画",
            "source": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "strength": 0.6,
        },
    },
    "inpaint": {
        "summary": "Repaint what is white in the mask, and keep the rest",
        "value": {
            "prompt": "一只猫",
            "source": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "mask": "019c2f6e-7d41-7a52-8e0c-3f1d2c4b5a69",
            "width": 768,
            "height": 512,
        },
    },
}


class NewTier(BaseModel):
    """How urgent the job is from now on."""

    model_config = ConfigDict(extra="forbid")

    tier: Tier = Field(examples=["interactive"])


@router.post(
    "/v1/jobs",
    operation_id="submitJob",
    summary="Submit a job",
    status_code=201,
    response_model=Job,
    response_description="The job.",
    responses={200: {"model": Job | DryRun, "description": "It has ended within `Prefer: wait`, or `dry_run`."}},
)
async def submit_job(
    new: Annotated[JobRequest, Body(openapi_examples=EXAMPLES)],
    caller: JobsWriter,
    state: State,
    base_url: BaseUrl,
    request_id: RequestId,
    dry_run: Annotated[bool, Query(description="Answer what would be rendered; store nothing.")] = False,
    idempotency_key: IdempotencyKeyHeader = None,
    prefer: Prefer = None,
    cancel_after: CancelAfter = None,
) -> Response:
    wait_s, expires_after_s = seconds_to_wait(prefer), seconds_to_live(cancel_after)
    if dry_run:
        return respond(await run_in_threadpool(jobs.dry_run, state, caller, new), 200)

    def submit() -> tuple[Job, bool]:
        return jobs.submit(
            state,
            caller,
            new,
            idempotency_key,
            request_id=request_id,
            base_url=base_url,
            expires_after_s=expires_after_s,
        )

    with state.requests.streaming(caller.tenant_id, state.limits_of(caller)) if wait_s else nullcontext():
        job, is_new = await run_in_threadpool(submit)
        if wait_s and not job.has_ended:
            ended = await state.job_watcher.wait(job.id, wait_s)
            job = ended.at(base_url) if ended else await run_in_threadpool(jobs.refresh, state, caller, job, base_url)
    headers = {"Location": f"{base_url}v1/jobs/{job.id}"}
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
    return respond(job, 200 if wait_s and job.has_ended else 201, headers)


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="readJob",
    summary="Read a job",
    response_model=Job,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_job(job_id: UUID, caller: AnyJobsReader, state: State, base_url: BaseUrl, request: Request) -> Response:
    return with_etag(request, jobs.get_with_progress(state, caller, job_id, base_url))


@router.get("/v1/jobs", operation_id="listJobs", summary="List jobs, newest first", response_model=JobPage)
def list_jobs(
    query: Annotated[JobQuery, Query()],
    caller: AnyJobsReader,
    state: State,
    base_url: BaseUrl,
    request: Request,
) -> Response:
    """With filters, a page that has a next one may have fewer jobs than its limit, even none: one request searches a
    limited number of jobs.
    """
    page = jobs.get_page(state, caller, query, base_url)
    return respond(page, 200, next_link(request, page.next_cursor))


@router.post("/v1/jobs/{job_id}/cancel", operation_id="cancelJob", summary="Cancel a job", response_model=Job)
def cancel_job(job_id: UUID, caller: AnyJobsWriter, state: State, base_url: BaseUrl) -> Response:
    """A job that has ended stays as it is."""
    jobs.cancel(state, caller, job_id)
    return respond(jobs.get(state, caller, job_id, base_url), 200)


@router.post(
    "/v1/jobs/{job_id}/tier", operation_id="changeTier", summary="Change the tier of a job", response_model=Job
)
def change_tier(job_id: UUID, new: NewTier, caller: JobsWriter, state: State, base_url: BaseUrl) -> Response:
    """Images that wait go on waiting in the new tier; images that a worker holds are finished as they are. 409 when
    the job has ended.
    """
    jobs.change_tier(state, caller, job_id, new.tier)
    return respond(jobs.get(state, caller, job_id, base_url), 200)


@router.post(
    "/v1/jobs/{job_id}/retry",
    operation_id="retryJob",
    summary="Submit the recipe of a job that has ended again",
    status_code=201,
    response_model=Job,
)
def retry_job(job_id: UUID, caller: JobsWriter, state: State, base_url: BaseUrl) -> Response:
    """A new job, with the same recipe and seeds; it names its parent."""
    job = jobs.get(state, caller, jobs.retry(state, caller, job_id), base_url)
    return respond(job, 201, {"Location": f"{base_url}v1/jobs/{job.id}"})


@router.delete(
    "/v1/jobs/{job_id}",
    operation_id="deleteJob",
    summary="Delete a job, its images and their pictures",
    status_code=204,
)
def delete_job(job_id: UUID, caller: JobsWriter, state: State) -> None:
    """Hidden at once, and cancelled before if it has not ended; its pictures are gone within a minute. Its retries
    stay, and a dataset that shows it is `stale`. A `GET` of its id is answered with 410 and the tombstone: when it was
    deleted, by which key, and how many of its pictures are still in the image store. To delete it again changes
    nothing.
    """
    deletion.delete_job(state, caller, job_id)


def respond(body: BaseModel, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
