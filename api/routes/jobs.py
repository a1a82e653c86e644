"""Jobs over HTTP: submit, look, list, cancel, change tier, retry. `common` does it, `api.queries.jobs` shows it."""

import hashlib
import secrets
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.deps import AppState, BaseUrl, JobsReader, JobsWriter, RequestId, State
from api.headers import CancelAfter, IdempotencyKey, Prefer, seconds_to_live, seconds_to_wait, with_etag
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.fleet import read_fleet
from api.queries.jobs import find_job, find_jobs, with_progress
from api.schemas import JOB, RECIPE, Job, Recipe, example
from api.services import actions
from common import originals
from common.accounts.tenants import Caller
from common.db import new_id, transaction
from common.enums import JobState, Tier
from common.errors import Unavailable
from common.log import log_event
from common.queue import idempotency, jobs
from common.queue.search import Search
from common.recipes import recipe, token_counter
from common.recipes.img2img import FindImage, InputImage
from common.recipes.recipe import canonical_json

router = APIRouter(tags=["jobs"])

ROUTE = "POST /v1/jobs"
LARGEST_LOT = 2**53  # root seeds drawn by lot: below it a seed survives every JSON reader

EXAMPLES = {
    "short": {"summary": "The least", "value": {"prompt": "红色的圆形"}},
    "full": {
        "summary": "All that one may say",
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


class Submission(recipe.Draft):
    """What to draw, and how urgently. What is left out comes from the model's entry in the catalogue."""

    tier: Tier = Tier.STANDARD


class Estimate(BaseModel):
    images: int
    seconds: float | None = Field(description="In pipeline calls on the workers that are up; null: nobody knows.")


class DryRun(BaseModel):
    """What a submission would become."""

    model_config = example({"recipe": RECIPE, "estimate": {"images": 1, "seconds": 4.2}, "warnings": []})

    recipe: Recipe
    estimate: Estimate
    warnings: list[str]


class JobPage(BaseModel):
    model_config = example({"items": [JOB], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Job]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


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
    submission: Annotated[Submission, Body(openapi_examples=EXAMPLES)],
    caller: JobsWriter,
    farm: State,
    base_url: BaseUrl,
    request_id: RequestId,
    dry_run: Annotated[bool, Query(description="Only say what would be drawn; nothing is stored.")] = False,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
    cancel_after: CancelAfter = None,
) -> Response:
    wait_s, life_s = seconds_to_wait(prefer), seconds_to_live(cancel_after)
    root_seed = secrets.randbelow(LARGEST_LOT)
    if dry_run:
        return answer(await run_in_threadpool(try_out, farm, caller, submission, root_seed), 200)
    once = once_of(submission, idempotency_key)
    job, is_new = await run_in_threadpool(
        submit, farm, caller, submission, once, life_s, root_seed, request_id, base_url
    )
    if wait_s and not job.has_ended:
        ended = await farm.waiting_room.wait(job.id, wait_s)
        job = ended.at(base_url) if ended else await run_in_threadpool(look_again, farm, caller, job, base_url)
    headers = {"Location": f"{base_url}v1/jobs/{job.id}"}
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
    return answer(job, 200 if wait_s and job.has_ended else 201, headers)


def submit(
    farm: AppState,
    caller: Caller,
    submission: Submission,
    once: idempotency.IdempotencyKey | None,
    life_s: int | None,
    root_seed: int,
    request_id: str,
    base_url: str,
) -> tuple[Job, bool]:
    """The job of this submission, and whether it is new: committed first, then sent."""
    drawn, warnings = resolve(farm, caller, submission, root_seed)
    farm.acceptances.require(caller.tenant_id, [farm.catalog.get(drawn.model)])
    job_id = new_id()
    # A job alone is one statement, and needs no BEGIN and COMMIT around it.
    with transaction(farm.engine if once else farm.autocommit) as connection:
        earlier = idempotency.claim_key(connection, caller.tenant_id, once, job_id) if once else None
        if earlier is None:
            jobs.submit(
                connection,
                caller.tenant_id,
                drawn,
                tier=submission.tier,
                warnings=warnings,
                request_id=request_id,
                job_id=job_id,
                expires_after_s=life_s,
            )
    if earlier is None:
        farm.messages.wake_soon(drawn.model, job_id, submission.tier)
        log_event("job_submitted", job=job_id, tenant=caller.tenant_id, images=drawn.count, request=request_id)
    # Not inside the transaction: until its commit, others that submit to this lane wait.
    return look(farm, caller, earlier or job_id, base_url), earlier is None


def try_out(farm: AppState, caller: Caller, submission: Submission, root_seed: int) -> DryRun:
    drawn, warnings = resolve(farm, caller, submission, root_seed)
    with transaction(farm.autocommit) as connection:
        rate = read_fleet(connection).images_per_second(drawn.model)
    seconds = round(drawn.count / rate, 1) if rate else None
    return DryRun(
        recipe=Recipe.model_validate(drawn.model_dump()),
        estimate=Estimate(images=drawn.count, seconds=seconds),
        warnings=list(warnings),
    )


def resolve(
    farm: AppState, caller: Caller, submission: Submission, root_seed: int
) -> tuple[recipe.Recipe, tuple[str, ...]]:
    """The complete recipe and its warnings. Raises Invalid for all that no worker could draw."""
    drawn = recipe.resolve(submission, farm.catalog, farm.default_model, root_seed, find_for(farm, caller))
    model = farm.catalog.get(drawn.model)
    token_counter.check(drawn, model)
    return drawn, token_counter.warnings(drawn, model)


def find_for(farm: AppState, caller: Caller) -> FindImage:
    """Knows the pictures of the caller's tenant."""

    def find(picture: UUID) -> InputImage | None:
        with transaction(farm.autocommit) as connection:
            return originals.find_image(connection, caller.tenant_id, picture)

    return find


def look(farm: AppState, caller: Caller, job_id: UUID, base_url: str) -> Job:
    with transaction(farm.autocommit) as connection:
        return find_job(connection, caller.tenant_id, job_id, base_url)


def look_again(farm: AppState, caller: Caller, job: Job, base_url: str) -> Job:
    """The job as it is by now; as it was, while the database is away: what was committed is not taken back."""
    try:
        job = look(farm, caller, job.id, base_url)
    except Unavailable:
        return job
    return with_progress(farm.messages, [job])[0]


def once_of(submission: Submission, key: str | None) -> idempotency.IdempotencyKey | None:
    if key is None:
        return None
    body = canonical_json(submission.model_dump(mode="json", exclude_unset=True))
    return idempotency.IdempotencyKey(ROUTE, key, hashlib.sha256(body.encode()).hexdigest())


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="readJob",
    summary="Look at a job",
    response_model=Job,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_job(job_id: UUID, caller: JobsReader, farm: State, base_url: BaseUrl, request: Request) -> Response:
    return with_etag(request, with_progress(farm.messages, [look(farm, caller, job_id, base_url)])[0])


class Filters(Paging):
    """Which jobs, and how many of them."""

    state: JobState | None = None
    model: str | None = Field(default=None, pattern=r"^[^\x00]*$", examples=["mini-zh"])
    batch: UUID | None = Field(default=None, description="Jobs of this batch, its last prompt first.")
    tier: Tier | None = None
    created_after: AwareDatetime | None = Field(default=None, examples=["2026-11-01T00:00:00Z"])
    created_before: AwareDatetime | None = None
    q: str | None = Field(
        default=None, pattern=r"^[^\x00]*$", max_length=200, description="Words that the prompt contains."
    )


@router.get("/v1/jobs", operation_id="listJobs", summary="List jobs, newest first", response_model=JobPage)
def list_jobs(
    filters: Annotated[Filters, Query()],
    caller: JobsReader,
    farm: State,
    base_url: BaseUrl,
    request: Request,
) -> Response:
    """With filters, a page may have fewer jobs than its limit, even none, though there is a next one: so far was
    looked."""
    page = find_page(farm, caller, filters, base_url)
    return answer(page, 200, next_link(request, page.next_cursor))


def find_page(farm: AppState, caller: Caller, filters: Filters, base_url: str) -> JobPage:
    chosen = filters.model_dump(exclude={"cursor", "limit"})
    search = Search(limit=filters.limit + 1, before=filters.before, **chosen)
    with transaction(farm.autocommit) as connection:
        found, cursor = filters.cut(*find_jobs(connection, caller.tenant_id, search, base_url))
    return JobPage(items=with_progress(farm.messages, found), next_cursor=cursor)


@router.post("/v1/jobs/{job_id}/cancel", operation_id="cancelJob", summary="Cancel a job", response_model=Job)
def cancel_job(job_id: UUID, caller: JobsWriter, farm: State, base_url: BaseUrl) -> Response:
    """A job that has ended stays as it is."""
    actions.cancel_job(farm, caller, job_id)
    return answer(look(farm, caller, job_id, base_url), 200)


class NewTier(BaseModel):
    """How urgent the job is from now on."""

    model_config = ConfigDict(extra="forbid")

    tier: Tier = Field(examples=["interactive"])


@router.post(
    "/v1/jobs/{job_id}/tier", operation_id="changeTier", summary="Change the tier of a job", response_model=Job
)
def change_tier(job_id: UUID, new: NewTier, caller: JobsWriter, farm: State, base_url: BaseUrl) -> Response:
    """What waits of it goes on waiting in the new tier; what a worker holds already is finished as it is. 409 when the
    job has ended.
    """
    actions.change_tier(farm, caller, job_id, new.tier)
    return answer(look(farm, caller, job_id, base_url), 200)


@router.post(
    "/v1/jobs/{job_id}/retry",
    operation_id="retryJob",
    summary="Submit the recipe of a job that has ended again",
    status_code=201,
    response_model=Job,
)
def retry_job(job_id: UUID, caller: JobsWriter, farm: State, base_url: BaseUrl) -> Response:
    """A new job, with the same recipe and seeds; it names its parent."""
    job = look(farm, caller, actions.retry_job(farm, caller, job_id), base_url)
    return answer(job, 201, {"Location": f"{base_url}v1/jobs/{job.id}"})


def answer(shape: BaseModel, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(shape.model_dump_json(), status, headers, "application/json")
