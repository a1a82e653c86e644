"""The way in and out: an API key for a session, a link that signs in once, and the language."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import RedirectResponse

from api.dashboard import i18n, sessions
from api.dashboard.rendering import page
from api.dashboard.sessions import TheVisitor, from_our_page
from api.deps import Admin, State
from common.accounts.tenants import find_key
from common.db import transaction
from common.errors import Forbidden, Unauthorized, Unavailable

router = APIRouter()

LINK_LASTS_S = 3600
LANGUAGE_LASTS_S = 365 * 24 * 3600

OurPage = Annotated[None, Depends(from_our_page)]


@router.get("/sign-in")
def login_page(request: Request, to: str = "/") -> Response:
    return page(request, "sign_in.html", to=to, code=None)


@router.post("/sign-in")
def sign_in(
    request: Request, farm: State, _: OurPage, key: Annotated[str, Form()] = "", to: Annotated[str, Form()] = "/"
) -> Response:
    try:
        caller = sessions.sign_in(farm, key)
    except (Unauthorized, Forbidden) as error:
        return page(request, "sign_in.html", status=error.status, to=to, code=error.code)
    response = go_to(request, to)
    sessions.open_session(farm, request, response, caller)
    return response


@router.post("/sign-out")
def sign_out(request: Request, visitor: TheVisitor, _: OurPage) -> Response:
    response = RedirectResponse(request.url_for("way_in"), 303)
    sessions.close_session(request, response)
    return response


@router.post("/links")
def make_link(caller: Admin, farm: State, request: Request) -> dict[str, str]:
    """A link that signs in once, as the key that asks for it. For the command line; asked for with the key itself."""
    ticket = secrets.token_urlsafe(24)
    if not farm.broker.leave(ticket, caller.key_id, LINK_LASTS_S):
        raise Unavailable("Redis is away, which keeps such links; sign in with the key itself.")
    return {"url": str(request.url_for("enter", ticket=ticket))}


@router.get("/enter/{ticket}")
def enter(ticket: str, farm: State, request: Request) -> Response:
    key_id = farm.broker.collect(ticket)
    with transaction(farm.autocommit) as connection:
        caller = find_key(connection, key_id) if key_id else None
    if caller is None:
        return page(request, "sign_in.html", status=401, to="/", code="link_used")
    response = go_to(request, "/")
    sessions.open_session(farm, request, response, caller)
    return response


@router.post("/language")
def choose_language(
    request: Request, _: OurPage, language: Annotated[str, Form()], to: Annotated[str, Form()] = "/"
) -> Response:
    response = go_to(request, to)
    if language in i18n.LANGUAGES:
        root = str(request.scope["root_path"])
        response.set_cookie(i18n.COOKIE, language, max_age=LANGUAGE_LASTS_S, path=root, httponly=True, samesite="lax")
    return response


def go_to(request: Request, path: str) -> Response:
    """To a path of the dashboard, and to no other place, whatever a form says."""
    inside = "/" + path.lstrip("/\\")
    return RedirectResponse(f"{request.scope['root_path']}{inside}", 303)
