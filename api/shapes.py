"""What the API answers with, where more than one route does: jobs, images, recipes. Values only."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field, computed_field

from common import recipe
from common.states import ImageState, JobState, Tier


class Recipe(recipe.Recipe):
    """What to draw, complete."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.seeds)


class ImageError(BaseModel):
    code: str = Field(examples=["out_of_memory"])
    message: str


class JobError(ImageError):
    retryable: bool = Field(description="Whether a retry of the job can help.")


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


class LoneImage(Image):
    """One picture, and the job that it belongs to."""

    job_id: UUID


class Progress(BaseModel):
    """How far the pipeline call has come that renders a job now."""

    step: int
    steps: int


class WaitingFor(BaseModel):
    """Why a job waits."""

    code: Literal["no_worker", "model_refused", "workers_busy", "backing_off", "draining"]
    message: str


class Timings(BaseModel):
    wait_s: float | None = Field(description="From the submission until its first image started.")
    render_s: float | None = Field(description="Spent in pipeline calls, summed over its images.")
    store_s: float | None = Field(description="Spent encoding and storing, summed over its images.")


class Job(BaseModel):
    """A recipe that the farm carries out."""

    id: UUID
    state: JobState
    tier: Tier
    batch_id: UUID | None = None
    parent_id: UUID | None = Field(description="The job that this one retries.")
    recipe: Recipe
    images: list[Image]
    progress: Progress | None = None
    position: int | None = Field(default=None, description="Images ahead of it, while it waits; counted up to 1000.")
    eta_seconds: float | None = Field(default=None, description="Until it has probably ended; null while nobody knows.")
    waiting_for: WaitingFor | None = None
    warnings: list[str]
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    timings: Timings
    worker: str | None = Field(description="Who rendered, or renders, its latest image.")

    @property
    def has_ended(self) -> bool:
        return self.finished_at is not None
