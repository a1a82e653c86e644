"""Batches over HTTP: submit, look, list, pause, resume, cancel. `common.batches` does it, `api.batch_reading` shows it.

Nothing here looks at a prompt: a control worker checks and expands what was submitted, a chunk at a time.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, WithJsonSchema, model_validator

from api import actions
from api.batch_reading import BATCH, Batch, find_batch, find_batches
from api.deps import BaseUrl, BatchesWriter, Farm, JobsReader, RequestId, TheFarm
from api.headers import IdempotencyKey, with_etag
from api.paging import NEXT_CURSOR, Paging, next_link
from api.routes.jobs import LARGEST_LOT, find_for
from api.shapes import example
from api.spool import Spool, keep
from common import audit, batches, jobs, prompts
from common.audit import Action
from common.catalog import Catalog, Model
from common.db import new_id, transaction
from common.errors import FieldError, Invalid, UnknownModel
from common.matrix import FIELDS, MAX_VARIANTS, OF_EACH_PROMPT, Variant, axes, variants
from common.modes import Find
from common.pace import StopRule
from common.plan import PLACEHOLDER, Plan, Planner
from common.recipe import Draft, Seed, Text, canonical
from common.states import Tier
from common.telemetry import tell
from common.tenants import Caller

router = APIRouter(tags=["batches"])

PATH = "/v1/batches"
ROUTE = f"POST {PATH}"
MAX_BODY_BYTES = 10_000_000

EXAMPLES = {
    "inline": {"summary": "The least", "value": {"prompts": ["红色的圆形", "绿色的三角形"]}},
    "upload": {
        "summary": "A file, and all that one may say",
        "value": {
            "upload": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "defaults": {"model": "zh-v0", "negative_prompt": "水印", "steps": 30, "width": 512, "height": 512},
            "images_per_prompt": 4,
            "seed": 42,
            "tier": "bulk",
            "name": "doors, first try",
            "stop_rule": {"percent": 20, "of_last": 50},
        },
    },
    "matrix": {
        "summary": "Each prompt with two models, each with its scheduler, at three guidances: six pictures of a seed",
        "value": {
            "prompts": ["女孩们打开了另一世界的大门"],
            "matrix": {
                "guidance": [3, 5, 7.5],
                "zip": [{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}],
            },
            "seed": 42,
        },
    },
}


def schema_of_defaults() -> dict[str, Any]:
    schema = Draft.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = {name: schema["properties"][name] for name in FIELDS}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def schema_of_matrix() -> dict[str, Any]:
    lists = {
        name: {"type": "array", "items": one, "minItems": 1} for name, one in schema_of_defaults()["properties"].items()
    }
    pairs = {"type": "object", "properties": lists, "minProperties": 1, "additionalProperties": False}
    zipped = {"type": "array", "items": pairs, "description": "Lists that change together, all of one length."}
    return {"type": "object", "properties": lists | {"zip": zipped}, "additionalProperties": False}


class BatchDraft(BaseModel):
    """Prompts, inline or in a file that was uploaded, and what their recipes have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: list[Text] | None = Field(None, min_length=1, description="Up to 10 MB of them; else upload a file.")
    upload: UUID | None = Field(None, description="A file of prompts, in place of `prompts`.")
    defaults: Annotated[dict[str, Any], WithJsonSchema(schema_of_defaults())] = Field(
        {}, description="Of all recipes. What is left out comes from the model's entry in the catalogue."
    )
    matrix: Annotated[dict[str, Any], WithJsonSchema(schema_of_matrix())] = Field(
        {},
        description="Lists of values: each prompt is drawn with each combination of them, from the same seeds. Lists "
        f"in `zip` change together. At most {MAX_VARIANTS} combinations.",
    )
    images_per_prompt: StrictInt = Field(1, ge=1, description="How many images, each with a seed of its own.")
    seed: Seed | None = Field(None, description="Of the first image; the others count on. Default: drawn by lot.")
    tier: Tier = Tier.BULK
    stop_rule: StopRule | None = Field(None, description="When it pauses by itself. Default: never.")
    name: str = Field("", max_length=200, pattern=r"^[^\x00]*$", description="What people call it.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompts is None) == (self.upload is None):
            raise ValueError("needs either prompts or upload")
        return self


class BatchPage(BaseModel):
    model_config = example({"items": [BATCH], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Batch]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


@router.post(PATH, operation_id="submitBatch", summary="Submit a batch", status_code=201)
async def submit_batch(
    draft: Annotated[BatchDraft, Body(openapi_examples=EXAMPLES)],
    caller: BatchesWriter,
    farm: TheFarm,
    base_url: BaseUrl,
    request_id: RequestId,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Batch:
    """Answered at once: its prompts are checked, and become jobs, later. If one of them cannot be rendered, none is:
    the batch ends, and its `error` names the lines.
    """
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
    farm: Farm, caller: Caller, draft: BatchDraft, idempotency_key: str | None, request_id: str
) -> tuple[Batch, bool]:
    """The batch of this draft, and whether it is new: committed first, then sent."""
    plan, batch_id = plan_of(farm, caller, draft), new_id()
    once = jobs.Once(ROUTE, idempotency_key, fingerprint(draft)) if idempotency_key else None
    if once:  # its prompts may be stored already
        with transaction(farm.autocommit) as connection:
            earlier = jobs.made_before(connection, caller.tenant_id, once)
        if earlier:
            return look(farm, caller, earlier), False
    farm.acceptances.require(caller.tenant_id, map(farm.catalog.get, plan.models))
    upload_id = keep_inline(farm, caller, draft.prompts) if draft.prompts else draft.upload
    assert upload_id  # the draft has one of the two
    with transaction(farm.engine) as connection:
        earlier = jobs.submit_once(connection, caller.tenant_id, once, batch_id) if once else None
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
            audit.note(connection, caller, Action.SUBMIT_BATCH, batch_id, name=draft.name)
    if earlier is None:
        farm.messages.advance(batch_id)
        tell("batch_submitted", batch=batch_id, tenant=caller.tenant_id, request=request_id)
    return look(farm, caller, earlier or batch_id), earlier is None


def plan_of(farm: Farm, caller: Caller, draft: BatchDraft) -> Plan:
    """What is not said is decided now, for all prompts. Raises Invalid for what would suit none of them."""
    given = {name: value for name, value in draft.defaults.items() if value is not None}
    if strange := sorted(OF_EACH_PROMPT & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", "is for each prompt to say") for name in strange])
    changed = {field for axis in axes(draft.matrix) for field in axis.fields}
    if twice := sorted(changed & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", "is in the matrix too") for name in twice])
    defaults = given if "model" in changed else {"model": farm.default_model, **given}
    seed = secrets.randbelow(LARGEST_LOT) if draft.seed is None else draft.seed
    plan = Plan(defaults=defaults, matrix=draft.matrix, images_per_prompt=draft.images_per_prompt, seed=seed)
    for variant in variants(draft.matrix):
        model = check(plan, variant, farm.catalog, find_for(farm, caller))
        if plan.images_per_prompt > model.max_count:
            reason = f"is {plan.images_per_prompt}; it must be 1 to {model.max_count} for {model.name}"
            raise Invalid.of([FieldError("images_per_prompt", reason)])
    return plan


def check(plan: Plan, variant: Variant, catalog: Catalog, find: Find) -> Model:
    """The model of a variant. Raises Invalid for what would suit no prompt at all."""
    try:
        planner = Planner(plan.model_copy(update={"images_per_prompt": 1}), catalog, find, variant)
        recipe = planner.planned({"prompt": PLACEHOLDER}, 0).recipe
        model = catalog.get(recipe.model)
        prompts.check(recipe, model)
    except UnknownModel as error:
        raise UnknownModel(error.message, fields=placed(error, variant)) from None
    except Invalid as error:
        raise type(error).of(placed(error, variant)) from None
    return model


def placed(error: Invalid, variant: Variant) -> tuple[FieldError, ...]:
    """The fields that are wrong, where they stand in the request."""
    return tuple(replace(one, field=f"{place(one.field, variant)}.{one.field}") for one in error.fields)


def place(field: str, variant: Variant) -> str:
    return "matrix" if field.partition(".")[0] in variant else "defaults"


def keep_inline(farm: Farm, caller: Caller, found: Sequence[str]) -> UUID:
    """Keep prompts as the file that a user could have uploaded: JSON, for they may have newlines."""
    spool = Spool(io.BytesIO())
    for prompt in found:
        spool.write(json.dumps({"prompt": prompt}, ensure_ascii=False).encode() + b"\n")
    return keep(farm, caller.tenant_id, spool, "jsonl")[0].id


def fingerprint(draft: BatchDraft) -> str:
    return hashlib.sha256(canonical(draft.model_dump(mode="json", exclude_unset=True)).encode()).hexdigest()


def look(farm: Farm, caller: Caller, batch_id: UUID) -> Batch:
    with transaction(farm.autocommit) as connection:
        return find_batch(connection, caller.tenant_id, batch_id)


@router.get("/v1/batches", operation_id="listBatches", summary="List batches, newest first")
def list_batches(
    paging: Annotated[Paging, Query()], caller: JobsReader, farm: TheFarm, request: Request, response: Response
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
def read_batch(batch_id: UUID, caller: JobsReader, farm: TheFarm, request: Request) -> Response:
    return with_etag(request, look(farm, caller, batch_id))


@router.post("/v1/batches/{batch_id}/pause", operation_id="pauseBatch", summary="Pause a batch")
def pause_batch(batch_id: UUID, caller: BatchesWriter, farm: TheFarm) -> Batch:
    """What is being rendered is finished, and nothing more is begun. Again changes nothing."""
    actions.pause_batch(farm, caller, batch_id)
    return look(farm, caller, batch_id)


@router.post("/v1/batches/{batch_id}/resume", operation_id="resumeBatch", summary="Resume a batch")
def resume_batch(batch_id: UUID, caller: BatchesWriter, farm: TheFarm) -> Batch:
    """One that is not paused goes on as it did."""
    actions.resume_batch(farm, caller, batch_id)
    return look(farm, caller, batch_id)


@router.post("/v1/batches/{batch_id}/cancel", operation_id="cancelBatch", summary="Cancel a batch")
def cancel_batch(batch_id: UUID, caller: BatchesWriter, farm: TheFarm) -> Batch:
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
def retry_failed(batch_id: UUID, caller: BatchesWriter, farm: TheFarm, base_url: BaseUrl, response: Response) -> Batch:
    """A new batch that names its parent, with the same recipes and seeds: of each job the images that failed, and none
    that the safety checker refused. Again gives the same one while it goes on; 409 where nothing failed, or while the
    parent has not ended. A dataset of the parent has its pictures too.
    """
    made, is_new = actions.retry_failed(farm, caller, batch_id)
    response.headers["Location"] = f"{base_url}v1/batches/{made}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return look(farm, caller, made)
