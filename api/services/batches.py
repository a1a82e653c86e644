"""What a client says of a batch, and the plan that it makes: what all prompts have in common. Looks at none of them."""

import hashlib
import io
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, WithJsonSchema, model_validator

from api.deps import AppState
from api.routes.jobs import LARGEST_LOT, find_for
from api.services.uploads import HashingFile, save
from common.accounts.tenants import Caller
from common.batches.matrix import FIELDS, MAX_VARIANTS, OF_EACH_PROMPT, Variant, axes, variants
from common.batches.plan import PLACEHOLDER, Plan, Planner
from common.batches.throughput import StopRule
from common.catalog.catalog import Catalog, Model
from common.enums import Tier
from common.errors import FieldError, Invalid, UnknownModel
from common.recipes import token_counter
from common.recipes.img2img import FindImage
from common.recipes.recipe import Draft, Seed, Text, canonical_json

INLINE = "jsonl"  # the format that inline prompts are kept in

EXAMPLES = {
    "inline": {"summary": "The least", "value": {"prompts": ["红色的圆形", "绿色的三角形"]}},
    "upload": {
        "summary": "A file, and all that one may say",
        "value": {
            "upload": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "defaults": {"model": "zh-v0", "negative_prompt": "水印", "steps": 30, "width": 512, "height": 512},
            "images_per_prompt": 4,
            "seed": 42,
            "skip_bad": True,
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


class BatchRequest(BaseModel):
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
    skip_bad: StrictBool = Field(
        False, description="Leave out what cannot be rendered, and say so, in place of refusing the batch."
    )
    tier: Tier = Tier.BULK
    stop_rule: StopRule | None = Field(None, description="When it pauses by itself. Default: never.")
    name: str = Field("", max_length=200, pattern=r"^[^\x00]*$", description="What people call it.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompts is None) == (self.upload is None):
            raise ValueError("needs either prompts or upload")
        return self


def plan_of(farm: AppState, caller: Caller, draft: BatchRequest) -> Plan:
    """What is not said is decided now, for all prompts. Raises Invalid for what would suit none of them."""
    given = {name: value for name, value in draft.defaults.items() if value is not None}
    if strange := sorted(OF_EACH_PROMPT & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", "is for each prompt to say") for name in strange])
    changed = {field for axis in axes(draft.matrix) for field in axis.fields}
    if twice := sorted(changed & given.keys()):
        raise Invalid.of([FieldError(f"defaults.{name}", "is in the matrix too") for name in twice])
    defaults = given if "model" in changed else {"model": farm.default_model, **given}
    seed = secrets.randbelow(LARGEST_LOT) if draft.seed is None else draft.seed
    plan = Plan(
        defaults=defaults,
        matrix=draft.matrix,
        images_per_prompt=draft.images_per_prompt,
        seed=seed,
        skip_bad=draft.skip_bad,
    )
    for variant in variants(draft.matrix):
        model = check(plan, variant, farm.catalog, find_for(farm, caller))
        if plan.images_per_prompt > model.max_count:
            reason = f"is {plan.images_per_prompt}; it must be 1 to {model.max_count} for {model.name}"
            raise Invalid.of([FieldError("images_per_prompt", reason)])
    return plan


def check(plan: Plan, variant: Variant, catalog: Catalog, find: FindImage) -> Model:
    """The model of a variant. Raises Invalid for what would suit no prompt at all."""
    try:
        planner = Planner(plan.model_copy(update={"images_per_prompt": 1}), catalog, find, variant)
        recipe = planner.planned({"prompt": PLACEHOLDER}, 0).recipe
        model = catalog.get(recipe.model)
        token_counter.check(recipe, model)
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


def keep_inline(farm: AppState, caller: Caller, found: Sequence[str]) -> UUID:
    """Keep prompts as the file that a user could have uploaded."""
    spool = HashingFile(io.BytesIO())
    for line in in_lines(found):
        spool.write(line)
    return save(farm, caller.tenant_id, spool, INLINE)[0].id


def in_lines(found: Sequence[str]) -> Iterator[bytes]:
    """As lines of JSON, for they may have newlines."""
    return (json.dumps({"prompt": prompt}, ensure_ascii=False).encode() + b"\n" for prompt in found)


def fingerprint(draft: BatchRequest) -> str:
    return hashlib.sha256(canonical_json(draft.model_dump(mode="json", exclude_unset=True)).encode()).hexdigest()
