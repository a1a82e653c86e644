"""Images over HTTP: what is known of one, the way to its bytes, and a thumbnail of it."""

import io
from typing import Annotated
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response

from api.deps import AppState, BaseUrl, JobsReader, State
from api.headers import is_known, with_etag
from api.queries.jobs import find_image
from api.schemas import ImageWithJob
from common.db import transaction
from common.enums import TERMINAL_IMAGE, ImageState
from common.errors import Conflict, NotFound

router = APIRouter(tags=["images"])

THUMBNAIL_SIDE = 256
FATES = {
    ImageState.FLAGGED: "was held back by the safety checker",
    ImageState.FAILED: "has failed",
    ImageState.CANCELLED: "was cancelled",
}


def image_of(image_id: UUID, caller: JobsReader, farm: State, base_url: BaseUrl) -> tuple[ImageWithJob, str | None]:
    """An image of the caller's, and its key in storage."""
    with transaction(farm.autocommit) as connection:
        return find_image(connection, caller.tenant_id, image_id, base_url)


Found = Annotated[tuple[ImageWithJob, str | None], Depends(image_of)]


@router.get("/v1/images/{image_id}", operation_id="readImage", summary="Look at an image", response_model=ImageWithJob)
async def read_image(found: Found, request: Request) -> Response:
    return with_etag(request, found[0])


@router.get(
    "/v1/images/{image_id}/content",
    operation_id="readImageContent",
    summary="Get the bytes of an image",
    status_code=302,
    response_class=Response,
    responses={302: {"description": "The image store has them, at a link that is good for 15 minutes."}},
)
async def read_content(found: Found, farm: State) -> Response:
    image, key = found
    headers = {"Location": farm.storage.link(stored(image, key)), "Cache-Control": "no-store"}
    return Response(status_code=302, headers=headers)


@router.get(
    "/v1/images/{image_id}/thumbnail",
    operation_id="readImageThumbnail",
    summary="Get a small picture of an image",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}, "description": f"WebP, at most {THUMBNAIL_SIDE} pixels a side."}},
)
async def read_thumbnail(found: Found, farm: State, request: Request) -> Response:
    image, key = found[0], stored(*found)
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # In threads of their own: while the image store is slow, all else stays fast.
    limiter: anyio.CapacityLimiter = request.app.state.thumbnail_limiter
    data = await anyio.to_thread.run_sync(draw_thumbnail, farm, key, limiter=limiter)
    return Response(data, headers=headers, media_type="image/webp")


def draw_thumbnail(farm: AppState, key: str) -> bytes:
    from PIL import Image as Picture  # who asks for no thumbnail need not wait for it

    with Picture.open(io.BytesIO(farm.storage.get(key)), formats=("PNG", "WEBP", "JPEG")) as picture:
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def stored(image: ImageWithJob, key: str | None) -> str:
    """The key of an image that is stored. Raises Conflict while it may still be, NotFound when it never will."""
    if key is not None:
        return key
    if image.state not in TERMINAL_IMAGE:
        raise Conflict(f"Image {image.id} is still {image.state}; it has no picture yet.")
    raise NotFound(f"Image {image.id} {FATES[image.state]}; it has no picture.")
