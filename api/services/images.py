"""What callers do with one image: read what is known of it, get a link to its bytes, get a thumbnail."""

import io
from uuid import UUID

import anyio.to_thread

from api import sentence
from api.deps import AppState
from api.queries.jobs import find_image
from api.queries.safety import find_safety
from api.schemas import ImageWithJob, JudgedImage
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import TERMINAL_IMAGE, ImageState, Scope
from common.errors import Conflict, Gone, NotFound, PictureDamaged
from common.labels.reader import labelled_xmp
from common.log import log_event
from common.storage import sha256

THUMBNAIL_SIDE = 256  # pixels, at most


def get(state: AppState, caller: Caller, image_id: UUID, base_url: str) -> tuple[ImageWithJob, str | None]:
    """An image, and its key in storage once it is stored. Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return find_image(connection, caller.tenant_id, image_id, base_url)


def describe(state: AppState, caller: Caller, image_id: UUID, base_url: str) -> ImageWithJob:
    """An image; an operator also sees what the safety checker said of it. Raises NotFound."""
    with transaction(state.autocommit) as connection:
        image, _ = find_image(connection, caller.tenant_id, image_id, base_url)
        if not caller.may(Scope.OPERATOR):
            return image
        return JudgedImage(**image.model_dump(), safety=find_safety(connection, image_id))


def require_key(image: ImageWithJob, key: str | None) -> str:
    """The key of a stored image. Raises Conflict while it may still be stored, NotFound when it never will be, and Gone
    when its tenant keeps it no longer. Raises PictureDamaged when a scrub has found that its bytes are gone.
    """
    if image.picture_deleted_at:
        raise Gone(sentence("picture_deleted", image=image.id, at=f"{image.picture_deleted_at:%Y-%m-%d %H:%M}"))
    if key is not None:
        if image.error is not None:
            raise PictureDamaged(sentence("picture_gone", image=image.id))
        return key
    if image.state not in TERMINAL_IMAGE:
        raise Conflict(sentence("image_not_stored", image=image.id, state=image.state))
    if image.state == ImageState.FLAGGED:
        raise NotFound(sentence("image_flagged", image=image.id))
    if image.state == ImageState.FAILED:
        raise NotFound(sentence("image_failed", image=image.id))
    raise NotFound(sentence("image_cancelled", image=image.id))


async def thumbnail(state: AppState, image: ImageWithJob, key: str) -> bytes:
    """The stored image as WebP, at most THUMBNAIL_SIDE pixels a side, with its AI label. Raises PictureDamaged."""
    return await anyio.to_thread.run_sync(_thumbnail, state, image, key, limiter=state.thumbnail_limiter)


def _thumbnail(state: AppState, stored: ImageWithJob, key: str) -> bytes:
    from PIL import Image  # loaded late: other requests do not need it

    data = state.storage.get(key)
    if sha256(data) != stored.sha256:
        log_event("picture_damaged", image=stored.id, job=stored.job_id, key=key)
        raise PictureDamaged(sentence("picture_damaged", image=stored.id))
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=80, xmp=labelled_xmp(data) or b"")
    return buffer.getvalue()
