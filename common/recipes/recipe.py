"""The recipe: what to draw. Pure values; resolving a draft against the catalogue is the only logic here.

A `Draft` is what a user writes, most of it optional; a `Recipe` is complete and frozen, and says everything that
decides a picture. Knows nothing of tenants, jobs or where pictures go.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, ValidationError

from common.catalog.catalog import SCHEDULERS, Catalog, Model
from common.catalog.loras import LoraUse, lora_errors
from common.errors import FieldError, Invalid
from common.recipes import prompt_weighting
from common.recipes.img2img import FindImage, InputImage, Mode, find_nothing, resolve_inputs, steps_taken

T = TypeVar("T")

# Where pydantic's own words would leave a reader guessing.
SENTENCES = {
    "extra_forbidden": "is not a field that is known here",
    "missing": "is missing",
    "string_unicode": "is not Unicode text: it has half of a surrogate pair",
    "finite_number": "must be a number, not NaN or infinity",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}

MAX_SEED = 2**64 - 1
MAX_PROMPT_CHARACTERS = 8_000
MAX_GUIDANCE = 50.0

Format = Literal["png", "webp", "jpeg"]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, StringConstraints(strict=True, max_length=MAX_PROMPT_CHARACTERS)]


class Draft(BaseModel):
    """A recipe as a user writes it. What is left out comes from the model's entry in the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text = Field(examples=["女孩们打开了另一世界的大门"])
    negative_prompt: Text | None = Field(None, description="What to keep out. Default: the model's.")
    model: Text | None = Field(None, description="A name of the catalogue. Default: the farm's.", examples=["zh-v0"])
    width: StrictInt | None = Field(None, description="Pixels, a multiple of 8. Default: the model's.")
    height: StrictInt | None = Field(None, description="Pixels, a multiple of 8. Default: the model's.")
    steps: StrictInt | None = Field(None, description="Denoising steps. Default: the model's.")
    scheduler: Text | None = Field(None, description=f"One of {', '.join(SCHEDULERS)}. Default: the model's.")
    guidance: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None, description=f"0 to {MAX_GUIDANCE:g}. Default: the model's."
    )
    count: StrictInt = Field(1, description="How many images, each with a seed of its own.")
    seed: Seed | None = Field(None, description="Image i is drawn from seed + i. Default: drawn by lot.")
    seeds: tuple[Seed, ...] | None = Field(None, description="One seed an image, in place of `seed`.", min_length=1)
    mode: Mode | None = Field(None, description="Default: by whether there is a source, and a mask.")
    source: UUID | None = Field(
        None,
        description="The picture to change: an upload, or a stored image. It is scaled until it covers width and"
        " height, and cut off at both ends alike.",
    )
    mask: UUID | None = Field(
        None, description="Inpaint only: a picture of the source's shape, white where to repaint. All else is kept."
    )
    strength: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        None,
        description="How much of the source is given up, up to 1: the last `int(steps × strength)` steps are taken."
        " Default: 0.75; for inpaint, 1.",
    )
    lora: tuple[LoraUse, ...] = Field((), description="LoRAs of the catalogue that are for the model.")
    format: Format = "png"


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: tuple[object, ...]) -> bool:
    return not value


class Recipe(BaseModel):
    """A complete recipe. Two recipes that are equal draw the same pictures on the same class of worker."""

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

    @property
    def count(self) -> int:
        return len(self.seeds)

    @property
    def steps_taken(self) -> int:
        return steps_taken(self.steps, self.strength)

    @property
    def compatibility(self) -> str:
        """What images must share to be rendered by one pipeline call; prompts, seeds, sources and masks are free."""
        shared = f"{self.model} {self.mode} {self.width}x{self.height} {self.steps}×{self.scheduler} g{self.guidance}"
        taken = "" if self.strength is None else f" last {self.steps_taken}"
        return shared + taken + "".join(f" +{use.name}×{use.weight}" for use in self.lora)

    @property
    def content(self) -> dict[str, Any]:
        """What decides the pictures: of a source and a mask their bytes, by whatever name and wherever."""
        originals = {"source": self.source, "mask": self.mask}
        digests = {name: original.sha256 for name, original in originals.items() if original}
        return self.model_dump(mode="json") | digests

    @property
    def digest(self) -> str:
        """sha256 of its content as canonical JSON, in hex."""
        return hashlib.sha256(canonical_json(self.content).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def resolve(
    draft: Draft, catalog: Catalog, default_model: str, root_seed: int, find: FindImage = find_nothing
) -> Recipe:
    """Complete a draft. `root_seed` stands in where the user gave none; `find` knows the pictures there are.

    Raises Invalid with every field that is wrong (its `fields`), or UnknownModel.
    """
    model = catalog.get(draft.model or default_model)
    width, height = _or(draft.width, model.width), _or(draft.height, model.height)
    steps, guidance = _or(draft.steps, model.steps), _or(draft.guidance, model.guidance)
    scheduler, negative = draft.scheduler or model.scheduler, _or(draft.negative_prompt, model.negative_prompt)
    beginning = resolve_inputs(draft.mode, draft.source, draft.mask, draft.strength, steps, find)

    wrong = [
        *prompt_errors("prompt", draft.prompt, empty_allowed=False),
        *prompt_errors("negative_prompt", negative, empty_allowed=True),
        *_size_errors(width, height, model),
        *_range_errors("steps", steps, 1, model.max_steps),
        *_range_errors("guidance", guidance, 0, MAX_GUIDANCE),
        *_scheduler_errors(scheduler),
        *_seed_errors(draft, model),
        *beginning.wrong,
        *lora_errors(draft.lora, catalog.loras, model.name, model.family),
    ]
    if wrong:
        raise Invalid.of(wrong)
    first = _or(draft.seed, root_seed)
    seeds = draft.seeds or seeds_from(first, draft.count)
    return Recipe(
        prompt=draft.prompt,
        negative_prompt=negative,
        model=model.name,
        width=width,
        height=height,
        steps=steps,
        scheduler=scheduler,
        guidance=float(guidance),
        seeds=seeds,
        mode=beginning.mode,
        format=draft.format,
        source=beginning.source,
        mask=beginning.mask,
        strength=beginning.strength,
        lora=draft.lora,
    )


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """Of so many images: image i of the prompt is drawn from the first + i, and after the largest seed comes 0."""
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def wrong_fields(error: ValidationError) -> list[FieldError]:
    """What pydantic found wrong, in sentences for people."""
    return [FieldError(".".join(map(str, one["loc"])), sentence(one)) for one in error.errors()]


def sentence(error: Mapping[str, Any]) -> str:
    """`Input should be greater than 0` → `should be greater than 0`."""
    said = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return SENTENCES.get(error["type"], said)


def prompt_errors(field: str, text: str, *, empty_allowed: bool) -> list[FieldError]:
    if not empty_allowed and not prompt_weighting.strip_weights(text).strip():
        return [FieldError(field, "is empty")]
    if "\0" in text:
        return [FieldError(field, "contains a NUL character")]
    if wrong := prompt_weighting.weight_error(text):
        return [FieldError(field, wrong)]
    return []


def _size_errors(width: int, height: int, model: Model) -> list[FieldError]:
    wrong = []
    for field, side in (("width", width), ("height", height)):
        if side < model.min_side:
            wrong.append(FieldError(field, f"is {side}; {model.name} draws at least {model.min_side} pixels"))
        elif side % 8:
            wrong.append(FieldError(field, f"is {side}; it must be divisible by 8"))
    if not wrong and (pixels := width * height) > model.max_pixels:
        field = "width" if width >= height else "height"
        wrong.append(FieldError(field, f"makes {pixels} pixels; {model.name} draws at most {model.max_pixels}"))
    return wrong


def _range_errors(field: str, value: float, low: float, high: float) -> list[FieldError]:
    return [] if low <= value <= high else [FieldError(field, f"is {value:g}; it must be {low:g} to {high:g}")]


def _scheduler_errors(scheduler: str) -> list[FieldError]:
    if scheduler in SCHEDULERS:
        return []
    return [FieldError("scheduler", f"is {scheduler!r}; it must be one of {', '.join(SCHEDULERS)}")]


def _seed_errors(draft: Draft, model: Model) -> list[FieldError]:
    if draft.seeds is None:
        return _range_errors("count", draft.count, 1, model.max_count)
    if draft.seed is not None:
        return [FieldError("seeds", "stands in place of seed; give one of the two")]
    if "count" in draft.model_fields_set and draft.count != len(draft.seeds):
        return [FieldError("count", f"is {draft.count} beside {len(draft.seeds)} seeds")]
    return _range_errors("seeds", len(draft.seeds), 1, model.max_count)
