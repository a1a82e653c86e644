"""The gallery: pictures, newest first, and one beside what has the same prompt and seed."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, field_validator

from api.dashboard.queries.gallery import GallerySearch, find_pictures, find_same_prompt_and_seed
from api.dashboard.sessions import TheVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.pagination import read_cursor, write_cursor
from common.db import transaction
from common.errors import NotFound

router = APIRouter()

PAGE = 60
# What may differ between pictures of one prompt and seed, in the order in which it is told.
DIFFERENCES = ("model", "steps", "scheduler", "guidance", "width", "height", "strength", "negative_prompt", "lora")


class GalleryFilters(BaseModel):
    """Which pictures. What a form leaves empty is not asked for."""

    q: str | None = Field(None, max_length=200, pattern=r"^[^\x00]*$")
    model: str | None = Field(None, pattern=r"^[^\x00]*$")
    batch: UUID | None = None
    cursor: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{22}$")

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return value or None


@view(router, "/gallery", "gallery.html")
def show_gallery(filters: Annotated[GalleryFilters, Query()], visitor: TheVisitor, farm: State) -> Read:
    search = GallerySearch(PAGE, read_cursor(filters.cursor), filters.model, filters.batch, filters.q)

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            found = find_pictures(connection, visitor.caller.tenant_id, search)
        return {
            "pictures": found.items,
            "cursor": write_cursor(found.next) if found.next else None,
            "filters": filters,
            "models": list(farm.catalog.models),
        }

    return look


@view(router, "/gallery/{image_id}", "comparison.html")
def compare(image_id: UUID, visitor: TheVisitor, farm: State) -> Read:
    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            found = find_same_prompt_and_seed(connection, visitor.caller.tenant_id, image_id)
        if not found:
            raise NotFound(f"There is no picture {image_id}.")
        shown = next(picture for picture in found if picture.id == image_id)
        recipes = [picture.recipe for picture in found]
        varied = [name for name in DIFFERENCES if len({str(recipe.get(name)) for recipe in recipes}) > 1]
        return {"shown": shown, "companions": found, "varied": varied}

    return look
