"""The pictures that screens show: the bytes of an image and its thumbnail, for who is signed in.

The same as the API's, which knows keys and not sessions.
"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import RedirectResponse

from api.dashboard.sessions import TheVisitor
from api.deps import State
from api.routes import images
from api.schemas import ImageWithJob

router = APIRouter()


def image_of(image_id: UUID, visitor: TheVisitor, farm: State) -> tuple[ImageWithJob, str | None]:
    return images.image_of(image_id, visitor.caller, farm, "")


Found = Annotated[tuple[ImageWithJob, str | None], Depends(image_of)]


@router.get("/images/{image_id}/content")
async def show_content(found: Found, farm: State) -> Response:
    return await images.read_content(found, farm)


@router.get("/images/{image_id}/file")
def save(found: Found, farm: State) -> Response:
    image, key = found
    name = f"{image.id}.{image.format}"
    return RedirectResponse(farm.storage.link(images.stored(image, key), save_as=name), 302)


@router.get("/images/{image_id}/thumbnail")
async def show_thumbnail(found: Found, farm: State, request: Request) -> Response:
    return await images.read_thumbnail(found, farm, request)
