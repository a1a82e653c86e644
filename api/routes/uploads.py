"""Files over HTTP: pictures to start from, prompts for a batch. A file goes through a temporary one into storage.

A picture is written anew (`api.services.image_upload`), of a sheet it is seen that it is one (`api.services.sheets`).
Prompts are never in memory whole, and what their lines say is for the control worker to check, once a batch is made
of them.
"""

import tempfile
from datetime import datetime
from email.message import Message
from functools import partial
from typing import BinaryIO
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.deps import AnyCaller, AppState, State
from api.schemas import example
from api.services.sheets import check_parquet, encoding_of
from api.services.uploads import HashingFile, save
from common import uploads
from common.accounts.tenants import Caller
from common.enums import Scope
from common.errors import Forbidden, Invalid

router = APIRouter(tags=["uploads"])

PATH = "/v1/uploads"
PROMPTS = {
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/plain": "txt",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
}
PICTURES = ("image/png", "image/jpeg", "image/webp")
BLOCK_BYTES = 1_000_000

LINES = '{"prompt": "红色的圆形"}\n{"prompt": "绿色的三角形", "steps": 30, "seed": 7}\n'
SHEET = '提示词,反向提示词,步数,种子\n"红色的圆形, 水彩",水印,30,7\n绿色的三角形,,,\n'
BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "required": True,
    "content": {
        **dict.fromkeys(PICTURES, BINARY),
        "application/jsonl": {"schema": {"type": "string"}, "example": LINES},
        "text/plain": {"schema": {"type": "string"}, "example": "红色的圆形\n绿色的三角形\n"},
        "text/csv": {"schema": {"type": "string"}, "example": SHEET},
        "application/vnd.apache.parquet": BINARY,
    },
}


class Upload(BaseModel):
    """A file that recipes can start from, or that a batch can be made of."""

    model_config = example(
        {
            "id": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "format": "png",
            "bytes": 412_307,
            "sha256": "5f0c3d6d8f1e0a7a4b2f8f6f4b1d9f3c0e6a7b8c9d0e1f2a3b4c5d6e7f8091a2",
            "width": 768,
            "height": 512,
            "encoding": None,
            "created_at": "2026-11-22T08:00:00Z",
        }
    )

    id: UUID
    format: str = Field(
        description="`png`: a picture. `jsonl`: a JSON object a line. `txt`: a prompt a line. Or `csv`, `parquet`."
    )
    bytes: int = Field(description="As it is kept; a picture is written anew.")
    sha256: str
    width: int | None = Field(description="Of a picture, upright.")
    height: int | None
    encoding: str | None = Field(description="What a CSV file is written in: `utf-8` or `gb18030`.")
    created_at: datetime


@router.post(
    PATH,
    operation_id="uploadFile",
    summary="Upload a picture, or a file of prompts",
    status_code=201,
    response_model=Upload,
    openapi_extra={"requestBody": BODY},
)
async def upload_file(request: Request, caller: AnyCaller, farm: State) -> Upload:
    """**A picture**, to be named as the `source` or `mask` of a recipe (scope `jobs:write`): PNG, JPEG or WebP by its
    content, not animated. It is kept upright, as an RGB PNG on white, without any metadata.

    **Prompts**, for a batch (scope `batches:write`); blank lines do not count. A line of `application/jsonl` is a JSON
    object with a `prompt` and those other fields of a recipe that it has of its own; a line of `text/plain` is a
    prompt; both are UTF-8. The columns of `text/csv` and `application/vnd.apache.parquet` are named as those fields,
    or in Chinese (提示词, 反向提示词, 种子 …). CSV has a header, commas, semicolons or tabs, and is UTF-8 or GB18030:
    what its `charset` says, or else the first of them that all of it is, as the answer tells.

    An upload is kept for 30 days after it was last asked for, or for as long as the farm's settings say.
    """
    content_type = Message()
    content_type["Content-Type"] = request.headers.get("content-type", "")
    media_type = content_type["Content-Type"].partition(";")[0].strip().lower()
    if media_type not in (*PICTURES, *PROMPTS):
        raise HTTPException(415, f"Content-Type must be one of {', '.join((*PICTURES, *PROMPTS))}.")
    is_picture = media_type in PICTURES
    scope = Scope.JOBS_WRITE if is_picture else Scope.BATCHES_WRITE
    if not caller.may(scope):
        raise Forbidden(f"This API key lacks the scope {scope}.")
    # In threads of their own: while the image store is slow, all else stays fast.
    limiter: anyio.CapacityLimiter = request.app.state.upload_limiter
    with tempfile.TemporaryFile() as file:
        spool = HashingFile(file)
        await receive(
            request, spool, farm.settings.picture_limit if is_picture else farm.settings.upload_limit, limiter
        )
        if is_picture:
            limiter = request.app.state.picture_limiter  # these take memory too
            keeping = partial(keep_picture, farm, caller, file, spool.bytes)
        else:
            keeping = partial(
                keep_prompts, farm, caller, spool, PROMPTS[media_type], content_type.get_content_charset()
            )
        upload, noted_at = await anyio.to_thread.run_sync(keeping, limiter=limiter)
    return Upload(**vars(upload), created_at=noted_at)


async def receive(request: Request, spool: HashingFile, limit: int, limiter: anyio.CapacityLimiter) -> None:
    """The body, as it comes."""
    block = bytearray()
    try:
        async for chunk in request.stream():
            block += chunk
            if spool.bytes + len(block) > limit:
                raise HTTPException(413, f"The file is over the limit of {limit:,} bytes.")
            if len(block) > BLOCK_BYTES:
                await anyio.to_thread.run_sync(spool.write, bytes(block), limiter=limiter)
                block.clear()
    except ClientDisconnect:
        raise HTTPException(400, "The connection was closed before the whole file had come.") from None
    spool.write(bytes(block))
    if not spool.bytes:
        raise Invalid("The file is empty.")


def keep_prompts(
    farm: AppState, caller: Caller, spool: HashingFile, format: str, charset: str | None
) -> tuple[uploads.Upload, datetime]:
    if format == "parquet":
        check_parquet(spool.file)
    encoding = encoding_of(spool.file, charset) if format == "csv" else None
    return save(farm, caller.tenant_id, spool, format, encoding=encoding)


def keep_picture(farm: AppState, caller: Caller, file: BinaryIO, size: int) -> tuple[uploads.Upload, datetime]:
    from api.services.image_upload import normalise  # who uploads no picture need not wait for Pillow

    file.seek(0)
    with tempfile.TemporaryFile() as anew:
        spool = HashingFile(anew)
        pixels = normalise(file, size, farm.settings.picture_pixels, spool)
        return save(farm, caller.tenant_id, spool, uploads.PICTURE, *pixels)
