"""Images over HTTP: what is known of one, its bytes, and a thumbnail. `api.services.images` finds them."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from api.deps import BaseUrl, JobsReader, JobsWriter, State
from api.headers import with_content, with_etag
from api.schemas import ImageWithJob
from api.services import deletion, images
from api.services.images import THUMBNAIL_SIDE

router = APIRouter(tags=["images"])


def image_of(image_id: UUID, caller: JobsReader, state: State, base_url: BaseUrl) -> tuple[ImageWithJob, str | None]:
    return images.get(state, caller, image_id, base_url)


def description_of(image_id: UUID, caller: JobsReader, state: State, base_url: BaseUrl) -> ImageWithJob:
    return images.describe(state, caller, image_id, base_url)


Found = Annotated[tuple[ImageWithJob, str | None], Depends(image_of)]


@router.get("/v1/images/{image_id}", operation_id="readImage", summary="Read an image", response_model=ImageWithJob)
async def read_image(image: Annotated[ImageWithJob, Depends(description_of)], request: Request) -> Response:
    return with_etag(request, image)


@router.get(
    "/v1/images/{image_id}/content",
    operation_id="readImageContent",
    summary="Get the bytes of an image",
    status_code=302,
    response_class=Response,
    responses={302: {"description": "Redirects to the image store, with a link that is valid for 15 minutes."}},
)
async def read_content(found: Found, state: State) -> Response:
    headers = {"Location": state.storage.link(images.require_key(*found)), "Cache-Control": "no-store"}
    return Response(status_code=302, headers=headers)


@router.get(
    "/v1/images/{image_id}/thumbnail",
    operation_id="readImageThumbnail",
    summary="Get a thumbnail of an image",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}, "description": f"WebP, at most {THUMBNAIL_SIDE} pixels a side."}},
)
async def read_thumbnail(found: Found, state: State, request: Request) -> Response:
    read = partial(images.thumbnail, state, found[0], images.require_key(*found))
    return await with_content(request, found[0].sha256, "image/webp", read)


@router.delete(
    "/v1/images/{image_id}", operation_id="deleteImage", summary="Delete an image and its picture", status_code=204
)
def delete_image(image_id: UUID, caller: JobsWriter, state: State) -> None:
    """Hidden at once, and cancelled before if it has not ended; the picture is gone within a minute. Its job stays, and
    a dataset that shows it is `stale`. A `GET` of its id is answered with 410 and the tombstone: when it was deleted,
    and by which key. To delete it again changes nothing.
    """
    deletion.delete_image(state, caller, image_id)
