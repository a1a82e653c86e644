"""The dashboard as one object: its screens, its files, how its errors look, and the headers of all that it answers.

An application of its own, mounted at `/dashboard`: the API beside it speaks JSON and knows keys, this one speaks HTML
and knows sessions. Both call the same functions of the domain.
"""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard.rendering import STATIC, notice, page, safe_headers, static, wants_part
from api.dashboard.sessions import SignedOut
from api.dashboard.views import admin, batches, datasets, gallery, images, job, jobs, login, new_job, overview, workers
from api.deps import AppState
from api.errors import problem, render_server_error
from api.live.page_streams import PageStreams
from common.errors import Error

SCREENS = (login, overview, jobs, job, new_job, batches, datasets, gallery, workers, admin, images)


def create_dashboard(farm: AppState) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.shared = farm
    app.state.page_streams = PageStreams()
    for kind in (Error, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, tell)
    app.add_middleware(Headers, headers=safe_headers(farm))
    for one in SCREENS:
        app.include_router(one.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class Headers:
    """Puts the headers that keep a page safe on everything; files that are asked for by their digest may be kept."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self.app = app
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(f"{scope['root_path']}/")  # now: whatever is mounted below changes the root

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                is_kept = message["status"] == 200 and is_file_by_digest(path, scope["query_string"])
                headers.setdefault("Cache-Control", "public, max-age=31536000, immutable" if is_kept else "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def is_file_by_digest(path: str, query: bytes) -> bool:
    """Whether a file that is there is asked for by what is in it. Amid an upgrade, a page of another process may ask
    for what this one does not have: its file must not be kept under that digest.
    """
    return path.startswith("static/") and f"{path}?{query.decode('latin-1')}" == static(path.removeprefix("static/"))


async def tell(request: Request, error: Exception) -> Response:
    """What went wrong, as a page, or as a notice on the page that is shown already; a stranger is shown the way in."""
    root = request.scope["root_path"]
    if isinstance(error, SignedOut) and request.method == "GET" and not wants_part(request):
        if request.url.path.startswith(f"{root}/live/"):
            return Response(status_code=204)  # tells an EventSource to stay away; the page's poll finds out
        here = request.url.path.removeprefix(root) + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(request.url_for("way_in").include_query_params(to=here or "/"), 303)
    status, code, sentence = describe_error(request, error)
    if "authorization" in request.headers:  # no browser: the command line asks for a link
        return problem(request, status, code, sentence)
    if wants_part(request):
        return notice(request, "notice_error.html", status, code=code, sentence=sentence)
    return page(request, "error.html", status=status, code=code, sentence=sentence)


def describe_error(request: Request, error: Exception) -> tuple[int, str, str]:
    """An error's status, its code, and a sentence that names what no code can."""
    if isinstance(error, Error):
        return error.status, error.code, error.message
    if isinstance(error, HTTPException):
        return error.status_code, "not_found" if error.status_code == 404 else "invalid", ""
    if isinstance(error, RequestValidationError):
        return 422, "invalid", "; ".join(str(one["msg"]) for one in error.errors())
    render_server_error(request)
    return 500, "error", ""
