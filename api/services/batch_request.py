"""The request of a batch: its prompts, and what their recipes have in common; with its documentation. Values only."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from api import sentence
from api.schemas import REUSE
from common.batches.matrix import FIELDS, MAX_VARIANTS
from common.batches.throughput import StopRule
from common.enums import Tier
from common.prompt_files.columns import FIELDS as FIELD_NAMES
from common.prompt_files.columns import MAX_NAME, field_of
from common.recipes.origin import MAX_KEPT_COLUMNS
from common.recipes.prompt_templates import Templates
from common.recipes.recipe import MAX_PROMPT_CHARACTERS, Draft, Seed, Text

EXAMPLES = {
    "inline": {"summary": "The minimum", "value": {"prompts": ["红色的圆形", "绿色的三角形"]}},
    "upload": {
        "summary": "A file, and every field",
        "value": {
            "upload": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "defaults": {"model": "zh-v0", "negative_prompt": "水印", "steps": 30, "width": 512, "height": 512},
            "images_per_prompt": 4,
            "seed": 42,
            "columns": {"prompt": "caption"},
            "keep": ["id", "category"],
            "skip_bad": True,
            "tier": "bulk",
            "name": "doors, first try",
            "stop_rule": {"percent": 20, "of_last": 50},
        },
    },
    "template": {
        "summary": "A template, of which 100 prompts are drawn by the seed",
        "value": {
            "prompts": ["{3::红|蓝}色的__形状__"],
            "template": {"samples": 100, "wildcards": {"形状": ["圆形", "三角形", "星形"]}},
            "seed": 42,
        },
    },
    "matrix": {
        "summary": "Each prompt with two models, each with its scheduler, at three guidances: six images per seed",
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


def _defaults_schema() -> dict[str, Any]:
    schema = Draft.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = {name: schema["properties"][name] for name in FIELDS}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _matrix_schema() -> dict[str, Any]:
    lists = {
        name: {"type": "array", "items": one, "minItems": 1} for name, one in _defaults_schema()["properties"].items()
    }
    pairs = {"type": "object", "properties": lists, "minProperties": 1, "additionalProperties": False}
    zipped = {"type": "array", "items": pairs, "description": "Lists that change together, all of one length."}
    return {"type": "object", "properties": lists | {"zip": zipped}, "additionalProperties": False}


ONE_SOURCE: Any = [
    {"required": ["prompts"], "properties": {"prompts": {"type": "array"}, "upload": {"type": "null"}}},
    {"required": ["upload"], "properties": {"upload": {"type": "string"}, "prompts": {"type": "null"}}},
]


def _as_field(name: Any) -> Any:
    """The field of a recipe that this name means. Raises ValueError if it means none."""
    if isinstance(name, str) and field_of(name) not in FIELD_NAMES:
        raise ValueError(sentence("column_of_no_field", field=name[:40], fields=", ".join(FIELD_NAMES)))
    return field_of(name) if isinstance(name, str) else name


def _object_or_text(prompt: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return prompt if isinstance(prompt, dict) else validate(prompt)


InlinePrompt = Annotated[
    Text,
    WrapValidator(_object_or_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": MAX_PROMPT_CHARACTERS}, {"type": "object"}]}),
]
ColumnName = Annotated[str, StringConstraints(strict=True, max_length=MAX_NAME, pattern=r"^[^\x00]*$")]


class BatchRequest(BaseModel):
    """Prompts, inline or in a file that was uploaded, and what their recipes have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"oneOf": ONE_SOURCE})

    prompts: Annotated[list[InlinePrompt], Field(fail_fast=True)] | None = Field(
        None,
        min_length=1,
        description="Up to 10 MB of them; else upload a file. An object is a line of JSON Lines: it may have other "
        "fields of a recipe, and values to keep.",
    )
    upload: UUID | None = Field(None, description="A file of prompts, in place of `prompts`.")
    defaults: Annotated[dict[str, Any], WithJsonSchema(_defaults_schema())] = Field(
        {}, description="Of all recipes. What is left out comes from the model's entry in the catalogue."
    )
    matrix: Annotated[dict[str, Any], WithJsonSchema(_matrix_schema())] = Field(
        {},
        description="Lists of values: each prompt is rendered with each combination of them, from the same seeds. "
        f"Lists in `zip` change together. At most {MAX_VARIANTS} combinations.",
    )
    images_per_prompt: StrictInt = Field(1, ge=1, description="How many images, each with a seed of its own.")
    seed: Seed | None = Field(None, description="Of the first image; the others count up from it. Default: random.")
    columns: dict[Annotated[str, BeforeValidator(_as_field)], ColumnName] = Field(
        {},
        description="The column that means a field, where its name does not say so: `prompt` is `caption`. In a file"
        " of JSON Lines, and in `prompts`, columns are keys.",
        examples=[{"prompt": "caption"}],
    )
    keep: Annotated[tuple[ColumnName, ...], Field(max_length=MAX_KEPT_COLUMNS)] | Literal["all"] | None = Field(
        None,
        description="Columns whose values go with each job into datasets, at most 8 kB a row; `all`: those that mean no"
        " field. The others are left out; without `keep` a column that means no field is an error.",
        examples=[["id", "category"]],
    )
    skip_bad: StrictBool = Field(
        False, description="Leave out prompts that cannot be rendered and report them, instead of refusing the batch."
    )
    template: StrictBool | Templates = Field(
        False,
        description="Read each prompt as a template, such as `{红|蓝}色的__形状__`: all its combinations become"
        " prompts, or some `samples`. `true`: all, without wildcards.",
    )
    reuse: StrictBool = Field(False, description=REUSE)
    tier: Tier = Tier.BULK
    stop_rule: StopRule | None = Field(None, description="When it pauses by itself. Default: never.")
    name: str = Field("", max_length=200, pattern=r"^[^\x00]*$", description="For people.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompts is None) == (self.upload is None):
            raise ValueError(sentence("prompts_or_upload"))
        return self

    @property
    def templates(self) -> Templates | None:
        return self.template if isinstance(self.template, Templates) else Templates() if self.template else None
