"""The bytes of a stored image and its thumbnail: as the API serves them, for a session instead of a key."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import RedirectResponse

from api.dashboard.sessions import CurrentVisitor
from api.deps import State
from api.headers import with_content
from api.schemas import ImageWithJob
from api.services import images

router = APIRouter()


def get_image(image_id: UUID, visitor: CurrentVisitor, state: State) -> tuple[ImageWithJob, str | None]:
    """The image, and its key in storage once it is stored."""
    return images.get(state, visitor.caller, image_id, "")


FoundImage = Annotated[tuple[ImageWithJob, str | None], Depends(get_image)]


@router.get("/images/{image_id}/content")
async def get_content(found: FoundImage, state: State) -> Response:
    return RedirectResponse(state.storage.link(images.require_key(*found)), 302)


@router.get("/images/{image_id}/file")
def get_file(found: FoundImage, state: State) -> Response:
    name = f"{found[0].id}.{found[0].format}"
    return RedirectResponse(state.storage.link(images.require_key(*found), save_as=name), 302)


@router.get("/images/{image_id}/thumbnail")
async def get_thumbnail(found: FoundImage, state: State, request: Request) -> Response:
    read = partial(images.thumbnail, state, found[0], images.require_key(*found))
    return await with_content(request, found[0].sha256, "image/webp", read)
