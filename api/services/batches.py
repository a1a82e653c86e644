"""What callers do with batches: submit, read, list, pause, resume, cancel, retry what failed.

A request becomes a plan: what all its prompts have in common. A control worker checks and expands the prompts.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from api import sentence
from api.deps import AppState
from api.headers import idempotency_key
from api.pagination import Paging
from api.queries.batches import Batch, find_batch, find_batches
from api.services.batch_request import BatchRequest
from api.services.jobs import image_finder, random_seed
from api.services.uploads import HashingFile, discard, save
from common.accounts import admission, audit
from common.accounts.audit import Action
from common.accounts.idempotency import find_result, submit_idempotent
from common.accounts.keys import Caller
from common.batches import lifecycle, retries
from common.batches.matrix import OF_EACH_PROMPT, Variant, axes, variants
from common.batches.plan import PLACEHOLDER, Plan, Planner
from common.batches.templates import count_prompts
from common.catalog.catalog import Catalog, Model
from common.db import transaction
from common.errors import FieldError, Invalid, LimitReached, UnknownModel
from common.log import log_event
from common.recipes import token_counter
from common.recipes.img2img import FindImage

ROUTE = "POST /v1/batches"  # of an Idempotency-Key
INLINE = "jsonl"  # the format that inline prompts are stored in


def submit(
    state: AppState, caller: Caller, request: BatchRequest, key: str | None, request_id: str
) -> tuple[Batch, bool]:
    """The batch of this request, and whether it is new. `key` is an Idempotency-Key.

    Raises Invalid, TierNotAllowed and LimitReached; then nothing is stored.
    """
    caller.require_tier(request.tier)
    plan = plan_of(state, caller, request)
    once = idempotency_key(ROUTE, key, request.model_dump(mode="json", exclude_unset=True))
    if once:  # its prompts may be stored already
        with transaction(state.autocommit) as connection:
            earlier = find_result(connection, caller.tenant_id, once)
        if earlier:
            return get(state, caller, earlier), False
    state.acceptances.require(caller.tenant_id, map(state.catalog.get, plan.models))
    limits, images = state.limits_of(caller), None
    if request.prompts:
        images = count_prompts(plan, request.prompts) * len(variants(request.matrix)) * request.images_per_prompt
        with transaction(state.engine) as connection:  # what cannot fit is not even stored
            admission.admit_batch(connection, caller.tenant_id, limits, request.tier, images)
    upload_id = _store_prompts(state, caller, request.prompts) if request.prompts else request.upload
    assert upload_id  # the request has one of the two

    def insert(batch_id: UUID) -> None:
        lifecycle.submit(
            connection,
            caller.tenant_id,
            upload_id,
            plan,
            tier=request.tier,
            name=request.name,
            stop_rule=request.stop_rule,
            request_id=request_id,
            batch_id=batch_id,
            images=images,
            limits=limits,
            key_id=caller.key_id,
        )
        audit.record(connection, caller, Action.SUBMIT_BATCH, batch_id, name=request.name)

    try:
        with transaction(state.engine) as connection:
            batch_id, is_new = submit_idempotent(connection, caller.tenant_id, once, insert)
    except LimitReached:
        if request.prompts:
            discard(state, upload_id, INLINE)
        raise
    if is_new:
        state.broker.advance(batch_id)
        log_event("batch_submitted", batch=batch_id, tenant=caller.tenant_id, request=request_id)
    return get(state, caller, batch_id), is_new


def get(state: AppState, caller: Caller, batch_id: UUID) -> Batch:
    """Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return find_batch(connection, caller.tenant_id, batch_id)


def get_page(state: AppState, caller: Caller, paging: Paging) -> tuple[list[Batch], str | None]:
    """Batches, newest first, and the cursor of the next page."""
    with transaction(state.autocommit) as connection:
        return paging.cut(find_batches(connection, caller.tenant_id, paging.before, paging.limit + 1))


def pause(state: AppState, caller: Caller, batch_id: UUID) -> None:
    """Does nothing to a batch that is paused. Raises NotFound, or Conflict when it has ended."""
    with transaction(state.engine) as connection:
        lifecycle.pause(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.PAUSE_BATCH, batch_id)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="paused")


def resume(state: AppState, caller: Caller, batch_id: UUID) -> None:
    """Does nothing to a batch that is not paused. Raises NotFound, or Conflict when it has ended."""
    with transaction(state.engine) as connection:
        models = lifecycle.resume(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.RESUME_BATCH, batch_id)
    for model in sorted(set(models)):
        state.broker.wake(model)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="resumed")


def cancel(state: AppState, caller: Caller, batch_id: UUID) -> None:
    """Does nothing to a batch that was cancelled. Raises NotFound, or Conflict when it has ended."""
    with transaction(state.engine) as connection:
        lifecycle.close(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.CANCEL_BATCH, batch_id)
    with transaction(state.engine) as connection:
        in_hand = lifecycle.cancel_active(connection, batch_id)
    state.broker.announce_cancelled(in_hand)
    state.broker.advance(batch_id)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="cancelled")


def retry_failed(state: AppState, caller: Caller, batch_id: UUID) -> tuple[UUID, bool]:
    """The batch that retries the failed images of this one, and whether it is new.

    Raises NotFound, TierNotAllowed, LimitReached, or Conflict if none failed.
    """
    with transaction(state.autocommit) as connection:
        models = retries.models(connection, caller.tenant_id, batch_id)
        caller.require_tier(find_batch(connection, caller.tenant_id, batch_id).tier)
    state.acceptances.require(caller.tenant_id, map(state.catalog.get, models))
    with transaction(state.engine) as connection:
        retry_id, is_new = retries.submit(
            connection,
            caller.tenant_id,
            batch_id,
            request_id=caller.request_id,
            limits=state.limits_of(caller),
            key_id=caller.key_id,
        )
        if is_new:
            audit.record(connection, caller, Action.RETRY_FAILED, batch_id, batch=retry_id)
    if is_new:
        state.broker.advance(retry_id)
        log_event(
            "batch_submitted", batch=retry_id, parent=batch_id, tenant=caller.tenant_id, request=caller.request_id
        )
    return retry_id, is_new


def plan_of(state: AppState, caller: Caller, request: BatchRequest) -> Plan:
    """What all prompts have in common, defaults filled in. Raises Invalid for what no prompt could be rendered with."""
    given = {name: value for name, value in request.defaults.items() if value is not None}
    if per_prompt := sorted(OF_EACH_PROMPT & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", sentence("field_of_each_prompt")) for name in per_prompt])
    varied = {field for axis in axes(request.matrix) for field in axis.fields}
    if twice := sorted(varied & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", sentence("field_in_matrix_too")) for name in twice])
    defaults = given if "model" in varied else {"model": state.default_model, **given}
    seed = random_seed() if request.seed is None else request.seed
    plan = Plan(
        defaults=defaults,
        matrix=request.matrix,
        images_per_prompt=request.images_per_prompt,
        seed=seed,
        skip_bad=request.skip_bad,
        template=request.templates,
        columns=request.columns,
        keep=request.keep,
        reuse=request.reuse,
    )
    for variant in variants(request.matrix):
        model = _check(plan, variant, state.catalog, image_finder(state, caller))
        if plan.images_per_prompt > model.max_count:
            message = sentence(
                "images_out_of_range", value=plan.images_per_prompt, most=model.max_count, model=model.name
            )
            raise Invalid.of([FieldError("images_per_prompt", message)])
    return plan


def _check(plan: Plan, variant: Variant, catalog: Catalog, find: FindImage) -> Model:
    """The model of a variant. Raises Invalid for what no prompt could be rendered with."""
    try:
        planner = Planner(plan.model_copy(update={"images_per_prompt": 1}), catalog, find, variant)
        recipe = planner.plan({"prompt": PLACEHOLDER}, 0).recipe
        model = catalog.get(recipe.model)
        token_counter.check(recipe, model)
    except UnknownModel as error:
        raise UnknownModel(error.message, fields=_located(error, variant)) from None
    except Invalid as error:
        raise type(error).of(_located(error, variant)) from None
    return model


def _located(error: Invalid, variant: Variant) -> tuple[FieldError, ...]:
    """The wrong fields by their paths in the request."""
    return tuple(replace(one, field=f"{_parent(one.field, variant)}.{one.field}") for one in error.fields)


def _parent(field: str, variant: Variant) -> str:
    return "matrix" if field.partition(".")[0] in variant else "defaults"


def _store_prompts(state: AppState, caller: Caller, prompts: Sequence[str | Mapping[str, Any]]) -> UUID:
    """Store inline prompts as the file that a user could have uploaded; the id of the upload."""
    file = HashingFile(io.BytesIO())
    for line in as_lines(prompts):
        file.write(line)
    return save(state, caller.tenant_id, file, INLINE)[0].id


def as_lines(prompts: Sequence[str | Mapping[str, Any]]) -> Iterator[bytes]:
    """As JSON Lines, since prompts may contain newlines."""
    for prompt in prompts:
        if isinstance(prompt, str):
            yield json.dumps({"prompt": prompt}, ensure_ascii=False).encode() + b"\n"
        else:  # its text may have half of a surrogate pair
            yield json.dumps(prompt).encode() + b"\n"
