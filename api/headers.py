"""The request headers that this API reads, and the conditional responses that they ask for."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Header, Request, Response
from pydantic import BaseModel, Field

from api import sentence
from common.accounts.idempotency import IdempotencyKey
from common.errors import FieldError, Invalid
from common.recipes.recipe import canonical_json

LONGEST_WAIT_S = 60
LONGEST_LIFE_S = 7 * 24 * 3600
WAIT = re.compile(r"wait\s*+=\s*+\"?([^\s;\"]*+)\"?\s*+(;.*)?", re.IGNORECASE)

IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        description="1 to 255 printable ASCII characters. For 24 hours, the same request under it gives the same job, "
        "and another request is an error.",
        examples=["3c9b1f6e-red-circle"],
    ),
    Field(pattern=r"^[\x20-\x7e]{1,255}$"),
]

Prefer = Annotated[
    str | None,
    Header(description="`wait=1` to `wait=60`: answer when the job has ended, or after so many seconds."),
]

CancelAfter = Annotated[
    str | None,
    Header(
        description=f"Seconds, 1 to {LONGEST_LIFE_S}. What has not ended by then fails with `expired`; what was stored "
        "stays.",
        examples=["3600"],
    ),
]


def idempotency_key(route: str, key: str | None, body: Mapping[str, Any]) -> IdempotencyKey | None:
    """The key of a request to this route, with the fingerprint of its body; None for a request without a key."""
    if key is None:
        return None
    return IdempotencyKey(route, key, hashlib.sha256(canonical_json(body).encode()).hexdigest())


def seconds_to_live(cancel_after: str | None) -> int | None:
    """The value of `Cancel-After`, 1 to LONGEST_LIFE_S. Raises Invalid."""
    if cancel_after is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", cancel_after) and 1 <= int(cancel_after) <= LONGEST_LIFE_S:
        return int(cancel_after)
    raise Invalid.of([FieldError("Cancel-After", sentence("seconds_out_of_range", most=LONGEST_LIFE_S))])


def seconds_to_wait(prefer: str | None) -> int:
    """The N of `Prefer: wait=N`, 1 to LONGEST_WAIT_S; 0 without it. Ignores other preferences. Raises Invalid."""
    for preference in (prefer or "").split(","):
        if asked := WAIT.fullmatch(preference.strip()):
            if re.fullmatch(r"[0-9]{1,2}", asked[1]) and 1 <= int(asked[1]) <= LONGEST_WAIT_S:
                return int(asked[1])
            message = sentence("wait_out_of_range", asked=asked[1], most=LONGEST_WAIT_S)
            raise Invalid.of([FieldError("Prefer", message)])
    return 0


def with_etag(request: Request, content: BaseModel) -> Response:
    """The content as JSON with its ETag; 304 for a client that has it already."""
    body = content.model_dump_json().encode()
    headers = {"ETag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


async def with_content(
    request: Request, sha256: str | None, media_type: str, read: Callable[[], Awaitable[bytes]]
) -> Response:
    """Bytes that never change, with their ETag; 304, without reading them, for a client that has them already."""
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await read(), headers=headers, media_type=media_type)


def is_known(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names this ETag; weak and strong ones are compared alike (RFC 9110)."""
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    return etag.removeprefix("W/") in known or known == ["*"]
