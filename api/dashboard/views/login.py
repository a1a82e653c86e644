"""Signing in with an API key or a one-time link, signing out, and the choice of the language."""

import secrets
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import RedirectResponse

from api.dashboard import i18n, sentence, sessions
from api.dashboard.rendering import render_page
from api.dashboard.sessions import CurrentVisitor, SameOrigin
from api.deps import Admin, AppState, State
from common.accounts.keys import Caller, find_key
from common.db import transaction
from common.errors import Error, Forbidden, Unauthorized, Unavailable

router = APIRouter()

LINK_S = 3600
LANGUAGE_COOKIE_S = 365 * 24 * 3600


@router.get("/sign-in")
def login_page(request: Request, to: str = "/") -> Response:
    return render_page(request, "login.html", to=to, code=None)


async def owner_of(request: Request, state: State, _: SameOrigin, key: Annotated[str, Form()] = "") -> Caller | Error:
    """Whose key it is, or why it opens no session."""
    try:
        return await sessions.sign_in(state, request, key)
    except (Unauthorized, Forbidden) as error:
        return error


@router.post("/sign-in")
def sign_in(
    request: Request,
    state: State,
    owner: Annotated[Caller | Error, Depends(owner_of)],
    to: Annotated[str, Form()] = "/",
) -> Response:
    if isinstance(owner, Error):
        return render_page(request, "login.html", status=owner.status, to=to, code=owner.code)
    response = _redirect(request, to)
    sessions.open_session(state, request, response, owner)
    return response


@router.post("/sign-out")
def sign_out(request: Request, visitor: CurrentVisitor, state: State, _: SameOrigin) -> Response:
    response = RedirectResponse(request.url_for("login_page"), 303)
    sessions.close_session(state, request, response, visitor)
    return response


@router.post("/links")
def make_link(caller: Admin, state: State, request: Request) -> dict[str, str]:
    """A one-time link that signs in as the key of this request. For the command line."""
    ticket = secrets.token_urlsafe(24)
    if not state.broker.store_ticket(sessions.ticket_digest(state, ticket), caller.key_id, LINK_S):
        raise Unavailable(sentence("links_need_redis"))
    return {"url": str(request.url_for("use_link", ticket=ticket))}


@router.get("/enter/{ticket}")
def use_link(ticket: str, state: State, request: Request) -> Response:
    key_id = state.broker.take_ticket(sessions.ticket_digest(state, ticket))
    caller = _owner(state, key_id) if key_id else None
    if caller is None:
        state.lookups.failures.note(request, "used_link")
        return render_page(request, "login.html", status=401, to="/", code="link_used")
    response = _redirect(request, "/")
    sessions.open_session(state, request, response, caller)
    return response


def _owner(state: AppState, key_id: UUID) -> Caller | None:
    try:
        with transaction(state.autocommit) as connection:
            return find_key(connection, key_id)
    except Unauthorized:
        return None


@router.post("/language")
def choose_language(
    request: Request, _: SameOrigin, language: Annotated[str, Form()], to: Annotated[str, Form()] = "/"
) -> Response:
    response = _redirect(request, to)
    if language in i18n.LANGUAGES:
        root = str(request.scope["root_path"])
        response.set_cookie(i18n.COOKIE, language, max_age=LANGUAGE_COOKIE_S, path=root, httponly=True, samesite="lax")
    return response


def _redirect(request: Request, path: str) -> Response:
    """To a path of the dashboard, never to another site: `path` comes from a form."""
    inside = "/" + path.lstrip("/\\")
    return RedirectResponse(f"{request.scope['root_path']}{inside}", 303)
