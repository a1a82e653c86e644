"""What callers do with jobs: submit, read, list, cancel, change tier, retry. Commits first, then sends to Redis.

States change in `common.queue`; what changes many jobs at once is in `bulk`. Knows no HTTP.
"""

import secrets
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from api.deps import AppState
from api.headers import idempotency_key
from api.queries.jobs import find_job, find_jobs, is_terminal, owner_of, with_progress
from api.schemas import RECIPE, Job, JobPage, JobQuery, JobRequest, Recipe, Unknown, example
from common import uploads
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.idempotency import submit_idempotent
from common.accounts.keys import Caller
from common.catalog.loras import digests
from common.db import transaction
from common.enums import Tier
from common.errors import RefusedByPolicy, Unavailable
from common.estimates import estimate
from common.estimates.farm import read_farm
from common.log import log_event
from common.queue import jobs, reuse, tiers
from common.queue.search import Search
from common.recipes import judged, prompt_templates, recipe, token_counter
from common.recipes.img2img import FindImage, InputImage

ROUTE = "POST /v1/jobs"  # of an Idempotency-Key
SEED_LIMIT = 2**53  # of random seeds: smaller ones survive every JSON reader

ESTIMATE: dict[str, Any] = {"images": 1, "seconds": 4.2, "seconds_p90": 6.1, "unknown": None}


class Estimate(BaseModel):
    """By what the farm did lately, from the claim to the publication, and by what waits now."""

    images: int
    seconds: float | None = Field(
        description="Until the job would end, behind what waits now and is before it; null while it is unknown."
    )
    seconds_p90: float | None = Field(description="What nine of ten stay below.")
    unknown: Unknown | None = Field(description="Why `seconds` is null.")


class DryRun(BaseModel):
    """The job that a request would make."""

    model_config = example({"recipe": RECIPE, "estimate": ESTIMATE, "warnings": []})

    recipe: Recipe
    estimate: Estimate
    warnings: list[str]


def submit(
    state: AppState,
    caller: Caller,
    request: JobRequest,
    key: str | None = None,
    *,
    request_id: str,
    base_url: str,
    expires_after_s: int | None = None,
) -> tuple[Job, bool]:
    """The job of this request, and whether it is new. `key` is an Idempotency-Key.

    Raises Invalid, TierNotAllowed and LimitReached.
    """
    caller.require_tier(request.tier)
    complete, warnings = resolve(state, caller, request)
    state.acceptances.require(caller.tenant_id, [state.catalog.get(complete.model)])
    once = idempotency_key(ROUTE, key, request.model_dump(mode="json", exclude_unset=True))
    limits = state.limits_of(caller)

    def insert(job_id: UUID) -> None:
        jobs.submit(
            connection,
            caller.tenant_id,
            complete,
            tier=request.tier,
            warnings=warnings,
            request_id=request_id,
            job_id=job_id,
            expires_after_s=expires_after_s,
            limits=limits,
            key_id=caller.key_id,
        )

    # Without a key, a limit and reuse it is one statement, which needs no BEGIN and COMMIT.
    is_one = not (once or limits.count_images or request.reuse)
    with transaction(state.autocommit if is_one else state.engine) as connection:
        job_id, is_new = submit_idempotent(connection, caller.tenant_id, once, insert)
        reused = 0
        if is_new and request.reuse:
            loras = digests(state.catalog.loras)
            reused = reuse.link_job(connection, caller.tenant_id, job_id, complete, loras).images
    if is_new:
        if reused < complete.count:
            state.broker.wake_soon(complete.model, job_id, request.tier)
        log_event(
            "job_submitted",
            job=job_id,
            tenant=caller.tenant_id,
            images=complete.count,
            reused=reused or None,
            request=request_id,
        )
    # Not inside the transaction: until its commit, others that submit to this lane wait.
    return get(state, caller, job_id, base_url), is_new


def dry_run(state: AppState, caller: Caller, request: JobRequest) -> DryRun:
    """The job that this request would make. Raises Invalid and TierNotAllowed."""
    caller.require_tier(request.tier)
    complete, warnings = resolve(state, caller, request)
    with transaction(state.autocommit) as connection:
        farm, weight = read_farm(connection, [complete.model]), estimate.weight_of(connection, caller.tenant_id)
    kind = estimate.kind_of(complete)
    found = estimate.of_new_job(farm, caller.tenant_id, weight, request.tier, kind, complete.count)
    return DryRun(
        recipe=Recipe.model_validate(complete.model_dump()),
        estimate=Estimate(
            images=complete.count,
            seconds=found.seconds,
            seconds_p90=found.seconds_p90,
            unknown=Unknown.of(found),
        ),
        warnings=list(warnings),
    )


def resolve(state: AppState, caller: Caller, request: JobRequest) -> tuple[recipe.Recipe, tuple[str, ...]]:
    """The complete recipe and its warnings. Raises Invalid for what no worker could render or the policy refuses."""
    find = image_finder(state, caller)
    complete = recipe.resolve(request, state.catalog, state.default_model, random_seed(), find)
    model = state.catalog.get(complete.model)
    require_allowed_prompt(state, caller, complete)
    token_counter.check(complete, model)
    return complete, (*token_counter.warnings(complete, model), *prompt_templates.warnings(complete.prompt))


def require_allowed_prompt(state: AppState, caller: Caller, complete: recipe.Recipe) -> None:
    """Raises RefusedByPolicy."""
    try:
        judged.require(state.policy, complete, state.catalog)
    except RefusedByPolicy as error:
        log_event("prompt_refused", tenant=caller.tenant_id, request=caller.request_id, reason=error.message)
        raise


def random_seed() -> int:
    return secrets.randbelow(SEED_LIMIT)


def image_finder(state: AppState, caller: Caller) -> FindImage:
    """Finds the uploads and stored images of the caller's tenant by their ids."""

    def find(image_id: UUID) -> InputImage | None:
        with transaction(state.autocommit) as connection:
            return uploads.find_image(connection, caller.tenant_id, image_id)

    return find


def get(state: AppState, caller: Caller, job_id: UUID, base_url: str) -> Job:
    """Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return find_job(connection, caller.reach, job_id, base_url)


def get_with_progress(state: AppState, caller: Caller, job_id: UUID, base_url: str) -> Job:
    """Raises NotFound."""
    return with_progress(state.broker, [get(state, caller, job_id, base_url)])[0]


def refresh(state: AppState, caller: Caller, job: Job, base_url: str) -> Job:
    """The job as it is now; as it was, while the database is unavailable."""
    try:
        return get_with_progress(state, caller, job.id, base_url)
    except Unavailable:
        return job


def has_ended(state: AppState, caller: Caller, job_id: UUID) -> bool:
    """Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return is_terminal(connection, caller.tenant_id, job_id)


def get_page(state: AppState, caller: Caller, query: JobQuery, base_url: str) -> JobPage:
    filters = query.model_dump(exclude={"cursor", "limit"})
    search = Search(limit=query.limit + 1, before=query.before, **filters)
    with transaction(state.autocommit) as connection:
        found, cursor = query.cut(*find_jobs(connection, caller.reach, search, base_url))
    return JobPage(items=with_progress(state.broker, found), next_cursor=cursor)


def cancel(state: AppState, caller: Caller, job_id: UUID) -> None:
    """Does nothing to a job that has ended. Raises NotFound."""
    with transaction(state.engine) as connection:
        is_cancelled_now = jobs.cancel(connection, job_id, caller.reach)
        if is_cancelled_now:
            owner = owner_of(connection, job_id) if caller.all_tenants else None
            audit.record(connection, caller, Action.CANCEL_JOB, job_id, acted_on=owner)
    if is_cancelled_now:
        state.broker.announce_cancelled([job_id])
        log_event("job_cancelled", job=job_id, tenant=caller.tenant_id)


def change_tier(state: AppState, caller: Caller, job_id: UUID, tier: Tier) -> None:
    """Raises NotFound, TierNotAllowed, LimitReached, or Conflict when the job has ended."""
    caller.require_tier(tier)
    with transaction(state.engine) as connection:
        moved = tiers.change(connection, job_id, caller.tenant_id, tier, state.limits_of(caller))
        if moved.jobs:
            audit.record(connection, caller, Action.CHANGE_TIER, job_id, tier=tier)
    for model in moved.models:
        state.broker.wake_soon(model, job_id, tier)
    if moved.jobs:
        log_event("job_changed", job=job_id, tenant=caller.tenant_id, to=tier)


def retry(state: AppState, caller: Caller, job_id: UUID) -> UUID:
    """The id of the new job.

    Raises NotFound, TierNotAllowed, LimitReached, or Conflict while the old job has not ended.
    """
    parent = get(state, caller, job_id, "")
    caller.require_tier(parent.tier)
    state.acceptances.require(caller.tenant_id, [state.catalog.get(parent.recipe.model)])
    require_allowed_prompt(state, caller, parent.recipe)
    with transaction(state.engine) as connection:
        limits = state.limits_of(caller)
        retried = jobs.retry(connection, job_id, caller.tenant_id, caller.request_id, limits, caller.key_id)
        audit.record(connection, caller, Action.RETRY_JOB, job_id, job=retried.id)
    state.broker.wake_soon(retried.model, retried.id, retried.tier)
    log_event(
        "job_submitted",
        job=retried.id,
        tenant=caller.tenant_id,
        images=parent.recipe.count,
        request=caller.request_id,
    )
    return retried.id
