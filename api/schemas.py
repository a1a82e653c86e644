"""The JSON shapes that more than one part of the API uses: jobs, images, recipes, and what is asked for. Values only.

Shapes that are only read (batches, datasets, models, workers, keys) stand beside their queries in `api.queries`.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, computed_field

from api import sentence
from api.pagination import NEXT_CURSOR, Paging
from common.catalog.loras import LoraUse
from common.catalog.styles import StyleUse
from common.enums import ImageState, JobState, Tier
from common.estimates import estimate as estimates
from common.recipes import recipe


def example(value: dict[str, Any]) -> ConfigDict:
    """The configuration of a model whose example in the documentation is this value."""
    return ConfigDict(json_schema_extra={"examples": [value]})


def request_body(shape: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """What a route that parses its body itself adds to its documentation. `Api.openapi` adds the shape."""
    content = {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}, "examples": examples}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


IMAGE: dict[str, Any] = {
    "id": "019c2f6e-7d53-7c1e-a0f2-5b8f0d6d1c11",
    "index": 0,
    "state": "stored",
    "attempts": 1,
    "seed": 42,
    "width": 512,
    "height": 512,
    "format": "png",
    "bytes": 412_307,
    "sha256": "5f0c3d6d8f1e0a7a4b2f8f6f4b1d9f3c0e6a7b8c9d0e1f2a3b4c5d6e7f8091a2",
    "url": "http://127.0.0.1:8000/v1/images/019c2f6e-7d53-7c1e-a0f2-5b8f0d6d1c11/content",
    "error": None,
    "picture_deleted_at": None,
    "reused": False,
}
RECIPE: dict[str, Any] = {
    "prompt": "女孩们打开了另一世界的大门",
    "negative_prompt": "",
    "model": "zh-v0",
    "width": 512,
    "height": 512,
    "steps": 50,
    "scheduler": "lms",
    "guidance": 7.5,
    "seeds": [42],
    "mode": "text2image",
    "format": "png",
    "source": None,
    "mask": None,
    "strength": None,
    "lora": [],
    "style": None,
    "count": 1,
}
JOB: dict[str, Any] = {
    "id": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081",
    "state": "succeeded",
    "tier": "standard",
    "batch_id": None,
    "parent_id": None,
    "recipe": RECIPE,
    "images": [IMAGE],
    "progress": None,
    "position": None,
    "eta_seconds": None,
    "eta_seconds_p90": None,
    "eta_unknown": None,
    "waiting_for": None,
    "warnings": [],
    "error": None,
    "created_at": "2026-11-22T08:00:00Z",
    "started_at": "2026-11-22T08:00:01.5Z",
    "finished_at": "2026-11-22T08:00:06Z",
    "timings": {"wait_s": 1.5, "render_s": 4.1, "store_s": 0.2},
    "worker": "gpu-1 cuda:0",
    "row": None,
    "meta": None,
}


def _id_only(image: Any) -> Any:
    """Without the storage key, which is private."""
    return image["id"] if isinstance(image, dict) else image


REUSE = (
    "Take a picture that your tenant has stored, in place of rendering it again, if one is there of the same recipe, "
    "seed and weights, by the class of workers that would render it now. It counts as no usage."
)
ImageId = Annotated[UUID | None, BeforeValidator(_id_only)]


class Recipe(recipe.Recipe):
    """What to render, complete."""

    model_config = ConfigDict(extra="allow", frozen=True)  # what newer code has stored is shown

    source: ImageId = Field(None, description="The upload or image that it starts from.")  # type: ignore[assignment]
    mask: ImageId = None  # type: ignore[assignment]
    strength: float | None = None
    lora: tuple[LoraUse, ...] = ()
    style: StyleUse | None = Field(None, description="What it added to the prompts.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.seeds)


class ImageError(BaseModel):
    code: str = Field(examples=["out_of_memory"])
    message: str


class JobError(ImageError):
    retryable: bool = Field(description="Whether a retry of the job may succeed.")


class Image(BaseModel):
    """One picture of a job."""

    id: UUID
    index: int
    state: ImageState
    attempts: int
    seed: int
    width: int
    height: int
    format: recipe.Format
    bytes: int | None = Field(description="Its size, once it is stored.")
    sha256: str | None = Field(description="Of the stored bytes.")
    url: str | None = Field(description="Redirects to the bytes, once they are stored.")
    error: ImageError | None
    picture_deleted_at: datetime | None = Field(
        default=None, description="When its picture was deleted: its tenant keeps pictures for some days."
    )
    reused: bool = Field(default=False, description="Whether it has the picture of an earlier image, and cost nothing.")

    def at(self, base_url: str) -> "Image":
        """The same, with a link that starts with `base_url`."""
        return self.model_copy(update={"url": f"{base_url}{self.url}"}) if self.url else self


class ImageWithJob(Image):
    """One picture, and the id of its job."""

    model_config = example(IMAGE | {"job_id": JOB["id"]})

    job_id: UUID


class Safety(BaseModel):
    """What the safety checker said of an image: its largest score, above 0 if it flagged it, and for which concept."""

    score: float
    concept: int


class JudgedImage(ImageWithJob):
    """An image as an operator sees it. Not in the documentation, which is for tenants."""

    safety: Safety | None


class Progress(BaseModel):
    """Denoising steps of the pipeline call that renders a job now."""

    step: int
    steps: int


class WaitingFor(BaseModel):
    """Why a job waits."""

    code: Literal[
        "no_worker",
        "model_refused",
        "workers_quarantined",
        "workers_busy",
        "backing_off",
        "draining",
        "batch_paused",
        "batch_cancelled",
        "tenant_suspended",
    ]
    message: str


class Unknown(BaseModel):
    """Why an estimate is not known."""

    code: str = Field(examples=["no_history"])
    message: str

    @classmethod
    def of(cls, estimate: estimates.Estimate) -> "Unknown | None":
        return cls(code=estimate.code, message=estimate.reason or "") if estimate.code else None


class Timings(BaseModel):
    wait_s: float | None = Field(description="From the submission until its first image started.")
    render_s: float | None = Field(description="Spent in pipeline calls, summed over its images.")
    store_s: float | None = Field(description="Spent encoding and storing, summed over its images.")


class Job(BaseModel):
    """One recipe that the farm renders."""

    model_config = example(JOB)

    id: UUID
    state: JobState
    tier: Tier
    batch_id: UUID | None = Field(default=None, description="The batch that it belongs to.")
    parent_id: UUID | None = Field(description="The job that this one retries.")
    recipe: Recipe
    images: list[Image]
    progress: Progress | None = None
    position: int | None = Field(default=None, description="Images ahead of it, while it waits; counted up to 1000.")
    eta_seconds: float | None = Field(
        default=None, description="While it waits: estimated time until it ends; null while it is unknown."
    )
    eta_seconds_p90: float | None = Field(default=None, description="What nine of ten stay below.")
    eta_unknown: Unknown | None = Field(default=None, description="Why, where a job that waits has no `eta_seconds`.")
    waiting_for: WaitingFor | None = None
    warnings: list[str]
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    timings: Timings
    worker: str | None = Field(description="The worker that rendered, or renders, its latest image.")
    row: int | None = Field(default=None, description="The line or row of its batch's file that it comes from.")
    meta: dict[str, Any] | None = Field(default=None, description="The values of that row that its batch keeps.")
    template_vars: dict[str, Any] | None = Field(
        default=None, exclude_if=lambda found: found is None, description="The variables of its prompt's template."
    )
    tenant: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="Only where the jobs of all tenants are asked for.",
    )

    @property
    def has_ended(self) -> bool:
        return self.finished_at is not None

    def at(self, base_url: str) -> "Job":
        """The same, with links that start with `base_url`."""
        return self.model_copy(update={"images": [image.at(base_url) for image in self.images]})


class JobRequest(recipe.Draft):
    """What to render, and how urgently. What is left out comes from the model's entry in the catalogue."""

    tier: Tier = Tier.STANDARD
    reuse: bool = Field(False, strict=True, description=REUSE)


MAX_SECONDS = 20_000_000_000  # pydantic takes larger numbers for milliseconds


def _in_seconds(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", value) and abs(float(value)) > MAX_SECONDS:
        raise ValueError(sentence("seconds_since_1970", most=MAX_SECONDS))
    return value


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_in_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": -MAX_SECONDS, "maximum": MAX_SECONDS, "description": "Since 1970."},
            ]
        }
    ),
]


class JobQuery(Paging):
    """Which jobs, and how many of them."""

    state: JobState | None = None
    model: str | None = Field(default=None, pattern=r"^[^\x00]*$", examples=["mini-zh"])
    batch: UUID | None = Field(default=None, description="Jobs of this batch, its last prompt first.")
    tier: Tier | None = None
    created_after: Moment | None = Field(default=None, examples=["2026-11-01T00:00:00Z"])
    created_before: Moment | None = None
    q: str | None = Field(
        default=None, pattern=r"^[^\x00]*$", max_length=200, description="Words that the prompt contains."
    )


class JobPage(BaseModel):
    model_config = example({"items": [JOB], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Job]
    next_cursor: str | None = Field(description=NEXT_CURSOR)
