"""The dashboard as an application: its views, its static files, its error pages and the headers of every response.

An application of its own, mounted at `/dashboard`: the API uses JSON and API keys, the dashboard HTML and sessions.
Both call the same services.
"""

from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.authentication import Once
from api.bodies import Rule
from api.dashboard.rendering import STATIC, is_htmx, render_notice, render_page, security_headers, static
from api.dashboard.sessions import SignedOut, find_visitor, get_visitor
from api.dashboard.views import (
    admin,
    batches,
    datasets,
    deletion,
    image_files,
    images,
    job,
    jobs,
    login,
    new_job,
    overview,
    tenants,
    usage,
    workers,
)
from api.deps import AppState
from api.errors import Refused, describe_tombstone, find_tombstone, problem, render_server_error, request_id
from api.live.page_streams import PageStreams
from common import failures
from common.accounts.keys import Caller
from common.errors import Error, Gone, NotFound

OPEN_FORMS = {"/sign-in": Rule(10_000), "/language": Rule(10_000)}  # that need no session
VIEWS = (
    login,
    overview,
    deletion,
    jobs,
    job,
    new_job,
    batches,
    datasets,
    images,
    image_files,
    workers,
    usage,
    admin,
    tenants,
)


def create_dashboard(state: AppState) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.shared = state
    app.state.page_streams = PageStreams()
    for error in (Error, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, render_error)
    app.add_middleware(HeadersMiddleware, headers=security_headers(state))
    app.add_middleware(VisitorMiddleware, state=state)
    for view in VIEWS:
        app.include_router(view.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class VisitorMiddleware:
    """The visitor is known before the body of a form is read, as the caller of the API is."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            request.state.visitor = Once(partial(find_visitor, self.state, request))
            path = scope["path"].removeprefix(scope["root_path"])
            request.state.sender = nobody if path in OPEN_FORMS else request.state.visitor
        await self.app(scope, receive, send)


async def nobody() -> None:
    """The sender of a form that is open to all."""


class HeadersMiddleware:
    """Adds the security headers to every response. A static file that is asked for by its digest may be cached."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self.app = app
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(f"{scope['root_path']}/")  # now: a mount below changes root_path

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                is_cacheable = message["status"] == 200 and names_current_digest(path, scope["query_string"])
                headers.setdefault(
                    "Cache-Control", "public, max-age=31536000, immutable" if is_cacheable else "no-store"
                )
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def names_current_digest(path: str, query: bytes) -> bool:
    """Whether a static file is asked for by its own digest. During an upgrade, a page of another process may ask for
    another version: this one must not be cached under that digest.
    """
    return path.startswith("static/") and f"{path}?{query.decode('latin-1')}" == static(path.removeprefix("static/"))


async def render_error(request: Request, error: Exception) -> Response:
    """An error as a page, or as a notice on the page that is open; without a session, the way to the sign-in page."""
    root = request.scope["root_path"]
    if isinstance(error, Refused):
        error = error.error
    if isinstance(error, SignedOut) and request.method == "GET" and not is_htmx(request):
        if request.url.path.startswith(f"{root}/live/"):
            return Response(
                status_code=204
            )  # an EventSource does not reconnect after 204; the page polls, and gets 401
        here = request.url.path.removeprefix(root) + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(request.url_for("login_page").include_query_params(to=here or "/"), 303)
    status, code, sentence = describe_error(request, error)
    if isinstance(error, NotFound) and (tombstone := await find_tombstone(request, error, partial(visiting, request))):
        status, code, sentence = Gone.status, Gone.code, describe_tombstone(tombstone)
    if "authorization" in request.headers:  # the command line asks for a link
        return problem(request, status, code, sentence)
    if is_htmx(request):
        return render_notice(request, "error_notice.html", status, code=code, sentence=sentence)
    return render_page(request, "error.html", status=status, code=code, sentence=sentence)


async def visiting(request: Request) -> Caller:
    return (await get_visitor(request)).caller


def describe_error(request: Request, error: Exception) -> tuple[int, str, str]:
    """The status, the code, and a sentence with the details: empty where the code says all."""
    if isinstance(error, Error):
        return error.status, error.code, error.message
    if isinstance(error, HTTPException):
        return error.status_code, "not_found" if error.status_code == 404 else "invalid", ""
    if isinstance(error, RequestValidationError):
        return 422, "invalid", "; ".join(str(one["msg"]) for one in error.errors())
    render_server_error(request)
    return 500, failures.INTERNAL_ERROR, failures.internal_error(request_id(request) or "request_failed")
