"""Sessions: an API key is exchanged once for a signed cookie of this browser.

The cookie holds the id of the key, never its secret, and when it was signed: that is the session. Every request reads
the key again, so revoking a key ends its sessions, and so does signing out, wherever else the cookie is. An action must
come from a page of the dashboard: its `Origin` is this farm's, and it has the CSRF token of the page. Knows no view.
"""

import hmac
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer
from sqlalchemy import Connection

from api.authentication import address_of
from api.dashboard import sentence
from api.deps import AllTenants, AppState
from common.accounts import audit, ended_sessions
from common.accounts.audit import Action
from common.accounts.keys import Caller, find_key
from common.db import transaction
from common.enums import Scope, Via
from common.errors import Forbidden, Unauthorized, Unavailable

COOKIE = "huafang_session"
SESSION_S = 12 * 3600
TOKEN_HEADER = "X-CSRF-Token"


class SignedOut(Unauthorized):
    """There is no valid session."""


@dataclass(frozen=True)
class Visitor:
    """Who is signed in, since when, and the CSRF token that the pages send with every action."""

    caller: Caller
    token: str
    signed_in_at: datetime

    @property
    def may_act(self) -> bool:
        """Within its tenant."""
        return self.caller.may(Scope.ADMIN)

    @property
    def runs_farm(self) -> bool:
        return self.caller.may(Scope.OPERATOR)


async def sign_in(state: AppState, request: Request, secret: str) -> Caller:
    """The owner of this key. Raises Unauthorized, or Forbidden when the key may not read the dashboard."""
    _pepper(state)
    return _require_viewer(await state.lookups.by_key(request, secret.strip()))


def open_session(state: AppState, request: Request, response: Response, caller: Caller) -> None:
    with transaction(state.engine) as connection:
        audit.record(connection, at_dashboard(request, caller), Action.SIGN_IN)
    response.set_cookie(
        COOKIE,
        _serializer(state).dumps(str(caller.key_id)),
        max_age=SESSION_S,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def close_session(state: AppState, request: Request, response: Response, visitor: Visitor) -> None:
    """For good: the cookie is refused from now on, also where somebody else has it."""
    with transaction(state.engine) as connection:
        ended_sessions.end(connection, visitor.caller.key_id, visitor.signed_in_at, SESSION_S)
        audit.record(connection, visitor.caller, Action.SIGN_OUT)
    response.delete_cookie(COOKIE, path=_path(request), httponly=True, samesite="strict")


async def find_visitor(state: AppState, request: Request) -> Visitor:
    """Who is signed in. Raises SignedOut."""
    cookie = request.cookies.get(COOKIE, "")
    try:
        key, signed_in_at = _serializer(state).loads(cookie, max_age=SESSION_S, return_timestamp=True)
        key_id = UUID(key)
    except (BadSignature, ValueError):
        if cookie:
            state.lookups.failures.note(request, "bad_session")
        raise SignedOut(sentence("not_signed_in")) from None

    def find(connection: Connection) -> Caller:
        if ended_sessions.has_ended(connection, key_id, signed_in_at):
            raise SignedOut(sentence("not_signed_in"))
        return find_key(connection, key_id)

    try:
        caller = _require_viewer(await state.lookups.run(find))
    except SignedOut:
        state.lookups.failures.note(request, "bad_session")
        raise
    except Unauthorized as error:
        state.lookups.failures.note(request, "bad_session")
        raise SignedOut(error.message) from None
    return Visitor(at_dashboard(request, caller), _csrf_token(state, cookie), signed_in_at)


def at_dashboard(request: Request, caller: Caller) -> Caller:
    return replace(caller, via=Via.DASHBOARD, request_id=request.state.request_id, address=address_of(request))


async def get_visitor(request: Request) -> Visitor:
    """Raises SignedOut."""
    found: Visitor = await request.state.visitor()
    return found


CurrentVisitor = Annotated[Visitor, Depends(get_visitor)]


async def get_reader(visitor: CurrentVisitor, all_tenants: AllTenants = False) -> Caller:
    """Who reads what is its tenant's; an operator, where it asks for any tenant's. Raises OperatorNeeded."""
    if all_tenants:
        visitor.caller.require_operator()
    return replace(visitor.caller, all_tenants=all_tenants)


Reader = Annotated[Caller, Depends(get_reader)]


async def require_same_origin(request: Request) -> None:
    """Raises Forbidden for a request that another site may have caused."""
    if request.headers.get("origin") != f"{request.url.scheme}://{request.url.netloc}":
        raise Forbidden(sentence("cross_origin"))


SameOrigin = Annotated[None, Depends(require_same_origin)]


async def on_page(request: Request, visitor: CurrentVisitor, _: SameOrigin) -> Visitor:
    """The visitor, for an action. Raises Forbidden without the page's CSRF token."""
    if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), visitor.token.encode()):
        raise Forbidden(sentence("stale_page"))
    return visitor


OnPage = Annotated[Visitor, Depends(on_page)]


async def get_actor(visitor: OnPage) -> Visitor:
    """The visitor, for an action within its tenant. Raises Forbidden for a read-only key."""
    if not visitor.may_act:
        raise Forbidden(sentence("read_only_key"))
    return visitor


async def get_actor_among_all(visitor: OnPage, all_tenants: AllTenants = False) -> Caller:
    """Who acts on what is its tenant's; an operator, where it asks for any tenant's. Raises Forbidden."""
    if all_tenants:
        visitor.caller.require_operator()
    elif not visitor.may_act:
        raise Forbidden(sentence("read_only_key"))
    return replace(visitor.caller, all_tenants=all_tenants)


async def get_operator(visitor: OnPage) -> Visitor:
    """The visitor, for an action that concerns the farm. Raises OperatorNeeded."""
    visitor.caller.require_operator()
    return visitor


CurrentActor = Annotated[Visitor, Depends(get_actor)]
ActorAmongAll = Annotated[Caller, Depends(get_actor_among_all)]
CurrentOperator = Annotated[Visitor, Depends(get_operator)]


def ticket_digest(state: AppState, ticket: str) -> str:
    """What is stored of a one-time link: who reads Redis, or writes there, cannot make a link of it."""
    return hmac.digest(_pepper(state).encode(), b"dashboard link " + ticket.encode("utf-8", "replace"), "sha256").hex()


def _require_viewer(caller: Caller) -> Caller:
    if not caller.may(Scope.VIEWER):
        raise Forbidden(sentence("scope_viewer_missing"))
    return caller


def _serializer(state: AppState) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(_pepper(state), salt="dashboard session")


def _csrf_token(state: AppState, cookie: str) -> str:
    return hmac.digest(_pepper(state).encode(), b"dashboard token " + cookie.encode(), "sha256").hex()


def _pepper(state: AppState) -> str:
    """Raises Unavailable without a pepper: anybody could then forge a session."""
    pepper = state.settings.key_pepper.get_secret_value()
    if not pepper:
        raise Unavailable(sentence("no_pepper"))
    return pepper


def _path(request: Request) -> str:
    """The path of the cookie: the browser sends it to the dashboard only."""
    return str(request.scope["root_path"])
