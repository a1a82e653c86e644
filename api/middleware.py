"""The middleware of every request: its id, who sends it, its body, its metrics, the answer to unexpected exceptions.

Plain ASGI, since Starlette's BaseHTTPMiddleware runs each request in a task group of its own.
"""

import re
import time
from collections.abc import Mapping
from functools import partial

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import sentence
from api.authentication import Lookups, Once
from api.bodies import Body, Memory, Rule
from api.errors import problem, render_server_error
from api.limits.quota import Quota
from api.limits.requests import Requests
from api.metrics import RequestMetrics
from common.accounts.keys import Caller
from common.accounts.limits import Limits
from common.db import new_id

MAX_HEAD_BYTES, MAX_HEADERS = 32_768, 100
COUNTED = "/v1/"  # what counts as a request of a tenant
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestMiddleware:
    """`rules`: what bodies may be, by path. `limits`: of tenants that have none of their own."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        lookups: Lookups,
        memory: Memory,
        rules: Mapping[str, Rule],
        requests: Requests,
        limits: Limits,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.lookups = lookups
        self.memory = memory
        self.rules = rules
        self.requests = requests
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request.state.request_id = given_or_new_id(request)
        # `sender`: who must be known before the body is read. The dashboard puts its visitor there.
        request.state.caller = request.state.sender = Once(partial(self._identify, request))
        body = Body(request, receive, self.rules, self.memory)
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request.state.request_id.encode())]
                if quota := getattr(request.state, "quota", None):
                    message["headers"].extend(quota.headers)
                if body.leaves_bytes:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if refusal := refuse_head(request):
                await refusal(scope, receive, send_with_id)
            else:
                await self.app(inner, body.receive, send_with_id if inner is scope else without_body(send_with_id))
        except Exception:
            response = render_server_error(request)
            if not status:
                await response(scope, receive, send_with_id)
        finally:
            body.release()
            self.metrics.observe(inner, scope["method"], status, time.perf_counter() - started)

    async def _identify(self, request: Request) -> Caller:
        """The holder of the request's key; of /v1, the request is counted. Raises Unauthorized and LimitReached."""
        caller = await self.lookups.by_header(request)
        if request.url.path.startswith(COUNTED):
            request.state.quota = Quota(self.limits.with_own(caller.own_limits))
            self.requests.count(caller.tenant_id, request.state.quota)
        return caller


def given_or_new_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else str(new_id())


def refuse_head(request: Request) -> Response | None:
    """The answer to a request whose path and headers are too many bytes; None if they are not."""
    scope = request.scope
    size = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size <= MAX_HEAD_BYTES and len(scope["headers"]) <= MAX_HEADERS:
        return None
    detail = sentence("head_too_large", limit=MAX_HEAD_BYTES, count=MAX_HEADERS)
    return problem(request, 431, "head_too_large", detail, headers={"Connection": "close"})


def without_body(send: Send) -> Send:
    """`send` for the answer to HEAD: it ends with the headers, also where GET would stream."""
    has_begun = False

    async def send_head(message: Message) -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head
