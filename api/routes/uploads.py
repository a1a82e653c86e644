"""Files over HTTP: prompts for a batch. A file goes through a temporary one into storage, and is never in memory whole.

What its lines say is for the control worker to check, once a batch is made of it.
"""

import tempfile
from datetime import datetime
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.deps import BatchesWriter, TheFarm
from api.shapes import example
from api.spool import Spool, keep
from common.errors import Invalid

router = APIRouter(tags=["batches"])

PATH = "/v1/uploads"
FORMATS = {"application/jsonl": "jsonl", "application/x-ndjson": "jsonl", "text/plain": "txt"}
BLOCK_BYTES = 1_000_000

LINES = '{"prompt": "红色的圆形"}\n{"prompt": "绿色的三角形", "steps": 30, "seed": 7}\n'
BODY = {
    "required": True,
    "content": {
        "application/jsonl": {"schema": {"type": "string"}, "example": LINES},
        "text/plain": {"schema": {"type": "string"}, "example": "红色的圆形\n绿色的三角形\n"},
    },
}


class Upload(BaseModel):
    """A file that a batch can be made of."""

    model_config = example(
        {
            "id": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90",
            "format": "jsonl",
            "bytes": 87,
            "sha256": "5f0c3d6d8f1e0a7a4b2f8f6f4b1d9f3c0e6a7b8c9d0e1f2a3b4c5d6e7f8091a2",
            "created_at": "2026-11-22T08:00:00Z",
        }
    )

    id: UUID
    format: str = Field(description="`jsonl`: a JSON object a line. `txt`: a prompt a line.")
    bytes: int
    sha256: str
    created_at: datetime


@router.post(
    PATH,
    operation_id="uploadFile",
    summary="Upload a file of prompts",
    status_code=201,
    response_model=Upload,
    openapi_extra={"requestBody": BODY},
)
async def upload_file(request: Request, caller: BatchesWriter, farm: TheFarm) -> Upload:
    """UTF-8; blank lines do not count. A line of `application/jsonl` is a JSON object with a `prompt` and those other
    fields of a recipe that it has of its own; a line of `text/plain` is a prompt.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in FORMATS:
        raise HTTPException(415, f"Content-Type must be one of {', '.join(FORMATS)}.")
    # In threads of their own: while the image store is slow, all else stays fast.
    limiter: anyio.CapacityLimiter = request.app.state.upload_limiter
    with tempfile.TemporaryFile() as file:
        spool, block = Spool(file), bytearray()
        try:
            async for chunk in request.stream():
                block += chunk
                if len(block) > BLOCK_BYTES:
                    await anyio.to_thread.run_sync(spool.write, bytes(block), limiter=limiter)
                    block.clear()
        except ClientDisconnect:
            raise HTTPException(400, "The connection was closed before the whole file had come.") from None
        spool.write(bytes(block))
        if not spool.bytes:
            raise Invalid("The file is empty.")
        kept = await anyio.to_thread.run_sync(keep, farm, caller.tenant_id, spool, FORMATS[media_type], limiter=limiter)
    upload, noted_at = kept
    return Upload(**vars(upload), created_at=noted_at)
