"""Uploads over HTTP: images to start from, and prompts for a batch. `api.services.uploads` stores them.

A body goes through a temporary file, so no upload is in memory whole. A control worker checks what the lines of a file
of prompts say, once a batch is made of it.
"""

from datetime import datetime
from email.message import Message
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import sentence
from api.bodies import Rule
from api.deps import AnyCaller, AppState, State
from api.schemas import example
from api.services import deletion
from api.services.prompt_upload import Declared, save_prompts, takes_long
from api.services.uploads import HashingFile, save_image, temporary_file
from common.accounts.keys import Caller
from common.enums import Scope
from common.errors import Forbidden, Invalid
from common.prompt_files.formats import FORMATS, MEDIA_TYPES, UNKNOWN_TYPES, shown_format
from common.uploads import Upload as StoredUpload

router = APIRouter(tags=["uploads"])

PATH = "/v1/uploads"
PROMPT_TYPES = (*MEDIA_TYPES, *UNKNOWN_TYPES)
PromptFormat = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet", "xlsx"]
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
BLOCK_BYTES = 250_000

LINES = '{"prompt": "红色的圆形"}\n{"prompt": "绿色的三角形", "steps": 30, "seed": 7}\n'
SHEET = '提示词,反向提示词,步数,种子\n"红色的圆形, 水彩",水印,30,7\n绿色的三角形,,,\n'
BINARY = {"schema": {"type": "string", "format": "binary"}}
# Without a schema: any bytes may be such a file; what its lines say is checked with the batch.
EXAMPLES = {
    "application/jsonl": {"example": LINES},
    "application/json": {"example": [{"prompt": "红色的圆形"}, {"prompt": "绿色的三角形", "steps": 30, "seed": 7}]},
    "text/plain": {"example": "红色的圆形\n绿色的三角形\n"},
    "text/csv": {"example": SHEET},
}
BODY = {
    "required": True,
    "content": {**dict.fromkeys((*IMAGE_TYPES, *PROMPT_TYPES), BINARY), **EXAMPLES},
}


class Upload(BaseModel):
    """An image that recipes can start from, or a file of prompts for a batch."""

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
        description=f"`png`: a picture. Of prompts, what they were read as: {', '.join(f'`{one}`' for one in FORMATS)}."
    )
    bytes: int = Field(description="As it is stored: an image is re-encoded, a table becomes lines of JSON.")
    sha256: str
    width: int | None = Field(description="Of a picture, upright.")
    height: int | None
    encoding: str | None = Field(description="Of text, when it came: `utf-8`, `gb18030` or `utf-16`.")
    created_at: datetime


def body_rule(limit: int) -> Rule:
    """Of a file: a block of it is in memory, and once more while it is written."""
    return Rule(limit, streamed=2 * BLOCK_BYTES, scopes=(Scope.BATCHES_WRITE, Scope.JOBS_WRITE))


@router.post(
    PATH,
    operation_id="uploadFile",
    summary="Upload a picture, or a file of prompts",
    status_code=201,
    response_model=Upload,
    openapi_extra={"requestBody": BODY},
)
async def upload_file(
    request: Request,
    caller: AnyCaller,
    state: State,
    format: Annotated[PromptFormat | None, Query(description="Of prompts, whatever the type says.")] = None,
) -> Upload:
    """**A picture** for the `source` or `mask` of a recipe (scope `jobs:write`): PNG, JPEG or WebP by its content, not
    animated. It is stored upright, as an RGB PNG on white, without metadata.

    **Prompts** for a batch (scope `batches:write`): a prompt a line, JSON Lines or an array of JSON objects, CSV, TSV,
    Parquet or the first sheet of an XLSX workbook; each of them also as `.gz` or `.zst`. Keys and columns are fields of
    a recipe, or other names of them (提示词, 反向提示词, 种子 …). LF, CRLF or CR ends a line; blank ones are skipped.
    Text is UTF-8, UTF-16 or GB18030: as its byte order mark or its `charset` says, or else UTF-8 if all of it is. A
    file of another type is told by its first bytes; the answer names `format` and `encoding`. Of a tenant's files,
    those that must be converted (Parquet, XLSX, arrays, compressed ones) are so one at a time.

    An upload is deleted 30 days after its last use, unless the farm's settings say otherwise.
    """
    content_type = Message()
    content_type["Content-Type"] = request.headers.get("content-type", "")
    media_type = content_type["Content-Type"].partition(";")[0].strip().lower()
    if media_type not in (*IMAGE_TYPES, *PROMPT_TYPES) and not format:
        raise HTTPException(415, sentence("type_unsupported", types=", ".join((*IMAGE_TYPES, *PROMPT_TYPES))))
    is_image = media_type in IMAGE_TYPES and not format
    scope = Scope.JOBS_WRITE if is_image else Scope.BATCHES_WRITE
    if not caller.may(scope):
        raise Forbidden(sentence("scope_missing", scope=scope))
    limit = state.settings.picture_limit if is_image else state.settings.upload_limit
    with temporary_file() as file:
        await receive(request, file, limit, state.upload_limiter)
        if is_image:
            store = partial(save_image, state, caller, file)
            upload, recorded_at = await anyio.to_thread.run_sync(store, limiter=state.decode_limiter)
        else:
            declared = Declared(format or MEDIA_TYPES.get(media_type), bool(format), content_type.get_content_charset())
            upload, recorded_at = await _save_prompts(state, caller, file, declared)
    shown = {**vars(upload), "format": shown_format(upload.format)}
    return Upload(**shown, created_at=recorded_at)


async def _save_prompts(
    state: AppState, caller: Caller, file: HashingFile, declared: Declared
) -> tuple[StoredUpload, datetime]:
    store = partial(save_prompts, state, caller, file, declared)
    if not takes_long(file, declared):
        return await anyio.to_thread.run_sync(store, limiter=state.upload_limiter)
    async with state.conversion_turns.of(caller.tenant_id):
        return await anyio.to_thread.run_sync(store, limiter=state.conversion_limiter)


async def receive(request: Request, file: HashingFile, limit: int, limiter: CapacityLimiter) -> None:
    """Write the body to the file as it arrives. Raises Invalid for an empty body."""
    block = bytearray()
    try:
        async for chunk in request.stream():
            block += chunk
            if file.bytes + len(block) > limit:
                raise HTTPException(413, sentence("file_too_large", limit=limit))
            if len(block) > BLOCK_BYTES:
                await anyio.to_thread.run_sync(file.write, bytes(block), limiter=limiter)
                block.clear()
    except ClientDisconnect:
        raise HTTPException(400, sentence("upload_incomplete")) from None
    file.write(bytes(block))
    if not file.bytes:
        raise Invalid(sentence("file_empty"))


@router.delete("/v1/uploads/{upload_id}", operation_id="deleteUpload", summary="Delete an upload", status_code=204)
def delete_upload(upload_id: UUID, caller: AnyCaller, state: State) -> None:
    """409 while there is a batch of it. A job that waits and starts from it fails with `source_gone`. To delete it
    again changes nothing.
    """
    deletion.delete_upload(state, caller, upload_id)
