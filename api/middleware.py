"""What every request passes through on its way in and out: its id, the limit on its size, its metrics, the last net.

Plain ASGI, since Starlette's BaseHTTPMiddleware runs each request in a task group of its own.
"""

import re
import time

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import tell_unforeseen
from api.metrics import RequestMetrics
from common.db import new_id

MAX_BODY_BYTES = 1_000_000
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class Passage:
    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

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
            await self.app(scope, limited(receive), send_with_id)
        except Exception:
            answer = tell_unforeseen(request)
            if not status:
                await answer(scope, receive, send_with_id)
        finally:
            self.metrics.observe(scope, status, time.perf_counter() - started)


def given_or_new_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else str(new_id())


def limited(receive: Receive) -> Receive:
    """The same, but ends the request once the body has passed the limit."""
    total = 0

    async def receive_limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body is over the limit of {MAX_BODY_BYTES:,} bytes.")
        return message

    return receive_limited
