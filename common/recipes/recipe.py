"""The recipe: what to draw. Pure values, and how a draft is resolved against the catalogue.

A `Draft` is what a user writes; most of its fields are optional. A `Recipe` is complete and frozen: it has everything
that decides the pixels. Knows no tenants, no jobs and no storage.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

from common.catalog.catalog import SCHEDULERS, Catalog
from common.catalog.loras import LoraUse, lora_errors
from common.catalog.styles import PLAIN, StyleUse
from common.errors import Invalid
from common.recipes.field_errors import (
    family_errors,
    prompt_errors,
    range_errors,
    scheduler_errors,
    seed_errors,
    size_errors,
    steps_errors,
    style_errors,
)
from common.recipes.img2img import FindImage, InputImage, Mode, find_no_image, resolve_inputs, steps_taken
from common.recipes.needs import Since, needs_code

T = TypeVar("T")

# Fields of a recipe that not all code knows.
SCHEDULERS_OF_CODE_3 = ("dpm++_singlestep", "flow_euler", "kdpm2_a", "lcm", "tcd")
SINCE: Since = {
    "scheduler": lambda scheduler: 3 if scheduler in SCHEDULERS_OF_CODE_3 else 1,
    "style": lambda _: 9,
}

# Where pydantic's own words would leave a reader guessing.
MAX_SEED = 2**64 - 1
MAX_PROMPT_CHARACTERS = 8_000
MAX_GUIDANCE = 50.0

Format = Literal["png", "webp", "jpeg"]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, StringConstraints(strict=True, max_length=MAX_PROMPT_CHARACTERS)]


class Draft(BaseModel):
    """A recipe as a user writes it. The model's entry in the catalogue gives what is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text = Field(examples=["女孩们打开了另一世界的大门"])
    negative_prompt: Text | None = Field(None, description="What to keep out. Default: the model's.")
    model: Text | None = Field(None, description="A name of the catalogue. Default: the farm's.", examples=["zh-v0"])
    width: StrictInt | None = Field(None, description="Pixels, a multiple of 8 or, by model, 16. Default: the model's.")
    height: StrictInt | None = Field(None, description="Pixels, as width. Default: the model's.")
    steps: StrictInt | None = Field(None, description="Denoising steps. Default: the model's.")
    scheduler: Text | None = Field(None, description=f"One of {', '.join(SCHEDULERS)}. Default: the model's.")
    guidance: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None, description=f"0 to {MAX_GUIDANCE:g}. Default: the model's."
    )
    count: StrictInt = Field(1, description="How many images, each with a seed of its own.")
    seed: Seed | None = Field(None, description="Image i is drawn from seed + i. Default: a random one.")
    seeds: tuple[Seed, ...] | None = Field(
        None, description="One seed for each image, in place of `seed`.", min_length=1
    )
    mode: Mode | None = Field(None, description="Default: by the source and the mask.")
    source: UUID | None = Field(
        None,
        description="The picture to change: an upload, or a stored image. It is scaled to cover width and height, and"
        " cropped at the centre.",
    )
    mask: UUID | None = Field(
        None, description="Inpaint only: a picture of the source's shape, white where the source is redrawn."
    )
    strength: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None,
        description="How much the source is changed, up to 1: the last `int(steps × strength)` steps are taken."
        " Default: 0.75; for inpaint, 1.",
    )
    lora: tuple[LoraUse, ...] = Field((), description="LoRAs of the catalogue that fit the model.")
    style: Text | None = Field(
        None,
        description="A style of the catalogue, which adds its texts to the prompts; see `GET /v1/styles`."
        f" `{PLAIN}`: none.",
    )
    format: Format = "png"


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: tuple[object, ...]) -> bool:
    return not value


class Recipe(BaseModel):
    """A complete recipe. Equal recipes give equal images on the same class of worker.

    The prompts are those that are drawn, with what the style added.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    negative_prompt: str
    model: str
    width: int
    height: int
    steps: int
    scheduler: str
    guidance: float
    seeds: tuple[int, ...]
    mode: Mode
    format: Format
    source: InputImage | None = Field(default=None, exclude_if=_is_none)
    mask: InputImage | None = Field(default=None, exclude_if=_is_none)
    strength: float | None = Field(default=None, exclude_if=_is_none)
    lora: tuple[LoraUse, ...] = Field(default=(), exclude_if=_is_empty)
    style: StyleUse | None = Field(default=None, exclude_if=_is_none)

    @property
    def written_prompt(self) -> str:
        """The prompt as its author wrote it."""
        return self.style.written_prompt(self.prompt) if self.style else self.prompt

    @property
    def written_negative_prompt(self) -> str:
        return self.style.written_negative_prompt(self.negative_prompt) if self.style else self.negative_prompt

    @property
    def count(self) -> int:
        return len(self.seeds)

    @property
    def steps_taken(self) -> int:
        return steps_taken(self.steps, self.strength)

    @property
    def compatibility(self) -> str:
        """What images must have in common for one pipeline call. Prompts, seeds, sources and masks may differ."""
        shared = f"{self.model} {self.mode} {self.width}x{self.height} {self.steps}×{self.scheduler} g{self.guidance}"
        taken = "" if self.strength is None else f" last {self.steps_taken}"
        needed = f" code {self.needs_code}" if self.needs_code > 1 else ""  # older code has lanes without them
        return shared + taken + "".join(f" +{use.name}×{use.weight}" for use in self.lora) + needed

    @property
    def needs_code(self) -> int:
        """The least CODE that can render it."""
        return needs_code(SINCE, self.model_dump(mode="json", include=set(SINCE), exclude_defaults=True))

    @property
    def content(self) -> dict[str, Any]:
        """What decides the pixels. A source and a mask are named by the sha256 of their bytes.

        Not the style: the prompts have what it added, and the same prompts written by hand give the same pixels.
        """
        images = {"source": self.source, "mask": self.mask}
        digests = {name: image.sha256 for name, image in images.items() if image}
        return self.model_dump(mode="json", exclude={"style"}) | digests

    @property
    def digest(self) -> str:
        """The sha256 of `content` as canonical JSON, in hex."""
        return hashlib.sha256(canonical_json(self.content).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def resolve(
    draft: Draft, catalog: Catalog, default_model: str, root_seed: int, find: FindImage = find_no_image
) -> Recipe:
    """Complete a draft. `root_seed` is the first seed of a draft without one; `find` finds the images it names.

    Raises UnknownModel, or Invalid with an error for each wrong field.
    """
    model = catalog.get(draft.model or default_model)
    width, height = _coalesce(draft.width, model.width), _coalesce(draft.height, model.height)
    steps, guidance = _coalesce(draft.steps, model.steps), _coalesce(draft.guidance, model.guidance)
    scheduler, negative = draft.scheduler or model.scheduler, _coalesce(draft.negative_prompt, model.negative_prompt)
    inputs = resolve_inputs(draft.mode, draft.source, draft.mask, draft.strength, steps, find)
    style = catalog.styles[draft.style].use if draft.style in catalog.styles else None

    errors = [
        *prompt_errors("prompt", draft.prompt, model, empty_allowed=False),
        *prompt_errors("negative_prompt", negative, model, empty_allowed=True),
        *size_errors(width, height, model),
        *steps_errors(steps, scheduler, model),
        *range_errors("guidance", guidance, 0, MAX_GUIDANCE),
        *scheduler_errors(scheduler, model),
        *family_errors(negative, guidance, inputs.mode, model),
        *seed_errors(draft.seed, draft.seeds, draft.count, model, is_count_given="count" in draft.model_fields_set),
        *inputs.errors,
        *lora_errors(draft.lora, catalog.loras, model.name, model.family),
        *style_errors(draft.style, draft.prompt, catalog.styles, model),
    ]
    if errors:
        raise Invalid.of(errors)
    first = _coalesce(draft.seed, root_seed)
    seeds = draft.seeds or seeds_from(first, draft.count)
    return Recipe(
        prompt=style.prompt(draft.prompt) if style else draft.prompt,
        negative_prompt=style.negative_prompt(negative) if style else negative,
        model=model.name,
        width=width,
        height=height,
        steps=steps,
        scheduler=scheduler,
        guidance=float(guidance),
        seeds=seeds,
        mode=inputs.mode,
        format=draft.format,
        source=inputs.source,
        mask=inputs.mask,
        strength=inputs.strength,
        lora=draft.lora,
        style=style,
    )


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """The seeds of a job's images: image i has `first` + i; the largest seed is followed by 0."""
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))


def _coalesce(value: T | None, default: T) -> T:
    return default if value is None else value
