"""The stored images of a tenant, newest first, and one image beside those of the same prompt and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, field_validator
from sqlalchemy import Connection, Row, text

from api.dashboard import sentence
from api.dashboard.sessions import CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.pagination import read_cursor, write_cursor
from api.services import images
from common.db import transaction
from common.errors import NotFound
from common.queue.lanes import EXACT
from common.queue.search import CANDIDATES, THE_HITS, Search, find
from common.schema import shown

router = APIRouter()

PAGE = 60
# The recipe fields in which images of one prompt and seed may differ, in the order of display.
DIFFERENCES = ("model", "steps", "scheduler", "guidance", "width", "height", "strength", "negative_prompt", "lora")


class ImageFilters(BaseModel):
    """The query of the page. A field left empty filters nothing."""

    q: str | None = Field(None, max_length=200, pattern=r"^[^\x00]*$")
    model: str | None = Field(None, pattern=r"^[^\x00]*$")
    batch: UUID | None = None
    cursor: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{22}$")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_to_none(cls, value: Any) -> Any:
        return value or None


@view(router, "/images", "images.html")
def list_images(filters: Annotated[ImageFilters, Query()], visitor: CurrentVisitor, state: State) -> Read:
    search = ImageSearch(PAGE, read_cursor(filters.cursor), filters.model, filters.batch, filters.q)

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            found = find_images(connection, visitor.caller.tenant_id, search)
        return {
            "images": found.items,
            "cursor": write_cursor(found.next) if found.next else None,
            "filters": filters,
            "models": list(state.catalog.models),
        }

    return read


@view(router, "/images/{image_id}", "image.html")
def show_image(image_id: UUID, visitor: CurrentVisitor, state: State) -> Read:
    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            found = find_same_prompt_and_seed(connection, visitor.caller.tenant_id, image_id)
        if not found:
            images.require_key(*images.get(state, visitor.caller, image_id, ""))  # says why it has no picture
            raise NotFound(sentence("no_image", image=image_id))
        recipes = [image.recipe for image in found]
        varied = [name for name in DIFFERENCES if len({str(recipe.get(name)) for recipe in recipes}) > 1]
        return {"shown": found[0], "same_prompt_and_seed": found, "varied": varied}

    return read


@dataclass(frozen=True)
class StoredImage:
    """A stored image and its recipe. `/images/ID/content` and `/images/ID/thumbnail` have its bytes."""

    id: UUID
    job_id: UUID
    batch_id: UUID | None
    index: int
    seed: int
    recipe: Mapping[str, Any]  # prompt, negative_prompt, model, width, height, steps, scheduler, guidance, format, …
    bytes: int
    finished_at: datetime


@dataclass(frozen=True)
class ImageSearch:
    """Which images. `before`: the `next` of the previous page."""

    limit: int
    before: UUID | None = None
    model: str | None = None
    batch: UUID | None = None
    q: str | None = None


@dataclass(frozen=True)
class ImagePage:
    """A page of images, and the cursor of the next page: None on the last.

    With a `q`, a page has whole jobs, newest first. It may have few images or none although `next` is set: a search
    reads a limited number of jobs for each page.
    """

    items: Sequence[StoredImage]
    next: UUID | None


def find_images(connection: Connection, tenant_id: UUID, search: ImageSearch) -> ImagePage:
    if search.q:
        return _find_by_words(connection, tenant_id, search)
    chosen = {"tenant": tenant_id, **{name: value for name, value in vars(search).items() if value}}
    filters = "".join(LANE_FILTERS[name] for name in LANE_FILTERS if name in chosen)
    statement = text(NEWEST.format(lanes=filters, before=BEFORE if search.before else ""))
    rows = connection.execute(statement, chosen | {"limit": search.limit + 1}).all()
    page = [stored_image(row) for row in rows[: search.limit]]
    return ImagePage(page, page[-1].id if len(rows) > search.limit else None)


def find_same_prompt_and_seed(
    connection: Connection, tenant_id: UUID, image_id: UUID, limit: int = 24
) -> Sequence[StoredImage]:
    """The image itself, then the images of the same prompt and seed, newest first, whatever else their recipes say.
    Empty when the tenant has no such image.
    """
    row = connection.execute(ONE_IMAGE, {"tenant": tenant_id, "image": image_id}).first()
    if row is None:
        return []
    image = stored_image(row)
    parameters = {
        "tenant": tenant_id,
        "q": image.recipe["prompt"],
        "seed": str(image.seed),  # it may be larger than any integer of Postgres
        "image": image_id,
        "candidates": CANDIDATES,
        "limit": limit - 1,
    }
    return [image, *map(stored_image, connection.execute(SAME_PROMPT_AND_SEED, parameters))]


def _find_by_words(connection: Connection, tenant_id: UUID, search: ImageSearch) -> ImagePage:
    wanted = Search(
        limit=search.limit,
        before=search.before,
        model=search.model,
        batch=search.batch,
        q=search.q,
        has_pictures=True,
    )
    found = find(connection, tenant_id, wanted)
    rows = connection.execute(IMAGES_OF_JOBS, {"jobs": list(found.ids)})
    images = list[StoredImage]()
    for job_id, group in groupby(map(stored_image, rows), key=lambda image: image.job_id):
        images += group
        if len(images) >= search.limit:
            return ImagePage(images, job_id)
    return ImagePage(images, found.resume)


def stored_image(row: Row[Any]) -> StoredImage:
    index = row._mapping["index"]  # Row.index is a method of tuples
    return StoredImage(
        row.id, row.job_id, row.batch_id, index, row.recipe["seeds"][index], row.recipe, row.bytes, row.finished_at
    )


LANE_FILTERS = {"model": " AND model = :model", "batch": " AND batch_id = :batch"}

# Continue after the image `before`.
BEFORE = """
    AND (images.finished_at, images.id) < ((SELECT finished_at FROM images WHERE id = :before), :before)"""

IMAGE_COLUMNS = "images.id, images.job_id, jobs.batch_id, images.index, jobs.recipe, images.bytes, images.finished_at"

# Find a tenant's newest stored images: the newest of each lane by index, then the newest of these.
NEWEST = f"""
    WITH mine AS MATERIALIZED (
        SELECT id, pictures_kept_from FROM {EXACT} AS lanes
        WHERE tenant_id = :tenant AND stored > deleted_stored AND {shown("lanes")}{{lanes}}),
    images AS MATERIALIZED (
        SELECT image.* FROM mine CROSS JOIN LATERAL (
            SELECT id, job_id, index, bytes, finished_at FROM images
            WHERE images.lane_id = mine.id AND images.state = 'stored' AND images.picture_deleted_at IS NULL
                AND images.finished_at >= coalesce(mine.pictures_kept_from, '-infinity') {{before}}
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        ORDER BY finished_at DESC, id DESC LIMIT :limit)
    SELECT {IMAGE_COLUMNS} FROM images JOIN jobs ON jobs.id = images.job_id
    ORDER BY images.finished_at DESC, images.id DESC
"""

# Read the stored images of these jobs, in the order of the jobs.
IMAGES_OF_JOBS = text(f"""
    SELECT {IMAGE_COLUMNS} FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE jobs.id = ANY(:jobs) AND images.state = 'stored' AND images.picture_deleted_at IS NULL
    ORDER BY array_position(cast(:jobs AS uuid[]), jobs.id), images.index
""")

# Read one stored image of a tenant.
ONE_IMAGE = text(f"""
    SELECT {IMAGE_COLUMNS} FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE images.id = :image AND images.state = 'stored' AND images.picture_deleted_at IS NULL
        AND jobs.tenant_id = :tenant AND {shown()}
""")

# Find a tenant's newest other images of this prompt and seed, by the index of prompts.
SAME_PROMPT_AND_SEED = text(f"""
    WITH hit AS MATERIALIZED ({THE_HITS})
    SELECT {IMAGE_COLUMNS}
    FROM hit AS jobs JOIN images ON images.job_id = jobs.id AND images.state = 'stored'
        AND images.picture_deleted_at IS NULL
    WHERE {shown()} AND jobs.tenant_id = :tenant AND jobs.recipe ->> 'prompt' = :q
        AND jobs.recipe -> 'seeds' ->> images.index = :seed AND images.id <> :image
    ORDER BY images.finished_at DESC, images.id DESC LIMIT :limit
""")
