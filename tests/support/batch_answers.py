"""What a farm answers to `huafang batch`."""

from typing import Any

from api.queries.batches import BATCH
from api.services.batch_dry_run import BatchDryRun
from tests.support.command_line import Request, Response

DRY_RUN: Any = BatchDryRun.model_json_schema()["examples"][0]
UPLOAD = "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"
TEXT = "红色的圆形\n绿色的三角形\n"
IMAGES = {"total": 8, "open": 0, "stored": 8, "flagged": 0, "failed": 0, "cancelled": 0}
WHEN = "2026-11-22T09:00:00Z"


def batch(**changes: Any) -> dict[str, Any]:
    return {**BATCH, "state": "ended", "running": 0, "images": IMAGES, "finished_at": WHEN, **changes}


def accept_batch(request: Request) -> Response:
    if "/v1/uploads" in request.path:
        return Response(201, {"id": "the-upload"})
    return Response(201, batch(state="checking")) if request.path == "/v1/batches" else Response(200, DRY_RUN)
