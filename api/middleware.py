"""The middleware of every request: its id, the limit on its body, its metrics, the answer to unexpected exceptions.

Plain ASGI, since Starlette's BaseHTTPMiddleware runs each request in a task group of its own.
"""

import re
import time
from collections.abc import Mapping

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import sentence
from api.errors import render_server_error
from api.metrics import RequestMetrics
from common.db import new_id

MAX_BODY_BYTES = 1_000_000
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestMiddleware:
    """`limits`: bytes that a body may have, by path; MAX_BODY_BYTES for other paths."""

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
            response = render_server_error(request)
            if not status:
                await response(scope, receive, send_with_id)
        finally:
            self.metrics.observe(scope, status, time.perf_counter() - started)


def given_or_new_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else str(new_id())


def declared_bytes(request: Request) -> int:
    """The Content-Length; 0 without one."""
    declared = request.headers.get("content-length", "")
    return int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else 0


def limited(receive: Receive, limit: int, declared: int) -> Receive:
    """`receive`, but 413 once the body exceeds the limit, or at once if its declared length does."""
    total = 0

    def check(size: int) -> None:
        if size > limit:
            raise HTTPException(413, sentence("body_too_large", limit=limit))

    async def receive_limited() -> Message:
        nonlocal total
        check(declared)  # first: the client may wait for `100 Continue` or an answer before it sends the body
        message = await receive()
        total += len(message.get("body", b""))
        check(total)
        return message

    return receive_limited
