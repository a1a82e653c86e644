"""The pictures that screens show: the bytes of an image and its thumbnail, for who is signed in.

The same as the API's, which knows keys and not sessions.
"""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import RedirectResponse

from api.dashboard.sessions import TheVisitor
from api.deps import State
from api.headers import with_content
from api.schemas import ImageWithJob
from api.services import images

router = APIRouter()


def image_of(image_id: UUID, visitor: TheVisitor, farm: State) -> tuple[ImageWithJob, str | None]:
    return images.get(farm, visitor.caller, image_id, "")


Found = Annotated[tuple[ImageWithJob, str | None], Depends(image_of)]


@router.get("/images/{image_id}/content")
async def show_content(found: Found, farm: State) -> Response:
    return RedirectResponse(farm.storage.link(images.require_key(*found)), 302)


@router.get("/images/{image_id}/file")
def save(found: Found, farm: State) -> Response:
    name = f"{found[0].id}.{found[0].format}"
    return RedirectResponse(farm.storage.link(images.require_key(*found), save_as=name), 302)


@router.get("/images/{image_id}/thumbnail")
async def show_thumbnail(found: Found, farm: State, request: Request) -> Response:
    read = partial(images.thumbnail, farm, images.require_key(*found))
    return await with_content(request, found[0].sha256, "image/webp", read)
