"""What every request passes through on its way in and out: its id, the limit on its size, its metrics, the last net.

Plain ASGI, since Starlette's BaseHTTPMiddleware runs each request in a task group of its own.
"""

import re
import time
from collections.abc import Mapping

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import render_server_error
from api.metrics import RequestMetrics
from common.db import new_id

MAX_BODY_BYTES = 1_000_000  # of a request to a path that has no limit of its own
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestMiddleware:
    """`limits`: the paths whose bodies may have more, or fewer, bytes than others."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, limits: Mapping[str, int]) -> None:
        self.app = app
        self.metrics = metrics
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request.state.request_id = given_or_new_id(request)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request.state.request_id.encode())]
            await send(message)

        try:
            limit = self.limits.get(scope["path"], MAX_BODY_BYTES)
            await self.app(scope, limited(receive, limit, declared_bytes(request)), send_with_id)
        except Exception:
            answer = render_server_error(request)
            if not status:
                await answer(scope, receive, send_with_id)
        finally:
            self.metrics.observe(scope, status, time.perf_counter() - started)


def given_or_new_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else str(new_id())


def declared_bytes(request: Request) -> int:
    """0 where the request does not say how long its body is."""
    declared = request.headers.get("content-length", "")
    return int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else 0


def limited(receive: Receive, limit: int, declared: int) -> Receive:
    """The same, but ends the request once the body has passed the limit, or at once if it says that it will."""
    total = 0

    def check(size: int) -> None:
        if size > limit:
            raise HTTPException(413, f"The body is over the limit of {limit:,} bytes.")

    async def receive_limited() -> Message:
        nonlocal total
        check(declared)  # first: the client may send nothing until it is asked to, or answered
        message = await receive()
        total += len(message.get("body", b""))
        check(total)
        return message

    return receive_limited
