"""Who looks at the dashboard: an API key, exchanged once for a session of this browser.

A session is a signed cookie that names the key, never its secret; the key is looked up with every request, so revoking
it ends its sessions. Knows nothing of what the screens show. An action must come from a page of ours: its `Origin` is
this farm's, and it carries the token that only those pages hold.
"""

import hmac
from dataclasses import dataclass, replace
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from api.deps import AppState, State
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.tenants import Caller, authenticate, find_key
from common.db import transaction
from common.enums import Scope, Via
from common.errors import Forbidden, Unauthorized, Unavailable

COOKIE = "huafang_session"
LASTS_S = 12 * 3600
TOKEN_HEADER = "X-CSRF-Token"


class SignedOut(Unauthorized):
    """There is no session, or none that is still good: the way in is shown."""


@dataclass(frozen=True)
class Visitor:
    """Who is signed in, and the token that his pages send along with every action."""

    caller: Caller
    token: str

    @property
    def may_act(self) -> bool:
        return self.caller.may(Scope.ADMIN)


def sign_in(farm: AppState, secret: str) -> Caller:
    """Who owns this key. Raises Unauthorized, or Forbidden when the key is not one for the dashboard."""
    with transaction(farm.autocommit) as connection:
        caller = authenticate(connection, secret.strip(), _pepper(farm))
    return _for_dashboard(caller)


def open_session(farm: AppState, request: Request, response: Response, caller: Caller) -> None:
    enters = replace(caller, via=Via.DASHBOARD, request_id=request.state.request_id)
    with transaction(farm.engine) as connection:
        audit.record(connection, enters, Action.SIGN_IN)
    response.set_cookie(
        COOKIE,
        _sessions(farm).dumps(str(caller.key_id)),
        max_age=LASTS_S,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def close_session(request: Request, response: Response) -> None:
    response.delete_cookie(COOKIE, path=_path(request), httponly=True, samesite="strict")


def visitor(request: Request, farm: State) -> Visitor:
    """Who is signed in. Raises SignedOut."""
    cookie = request.cookies.get(COOKIE, "")
    try:
        key_id = UUID(_sessions(farm).loads(cookie, max_age=LASTS_S))
    except (BadSignature, ValueError):
        raise SignedOut("Sign in with an API key.") from None
    with transaction(farm.autocommit) as connection:
        caller = find_key(connection, key_id)
    if caller is None:
        raise SignedOut("The API key of this session was revoked.")
    acts_here = replace(_for_dashboard(caller), via=Via.DASHBOARD, request_id=request.state.request_id)
    return Visitor(acts_here, _token(farm, cookie))


TheVisitor = Annotated[Visitor, Depends(visitor)]


def from_our_page(request: Request) -> None:
    """Raises Forbidden for a request that another site may have made this browser send."""
    if request.headers.get("origin") != f"{request.url.scheme}://{request.url.netloc}":
        raise Forbidden("This did not come from a page of this dashboard.")


def actor(request: Request, farm: State, visitor: TheVisitor, _: Annotated[None, Depends(from_our_page)]) -> Visitor:
    """Who acts. Raises Forbidden when it is not this visitor's page that asks, or when he may only look."""
    if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), visitor.token.encode()):
        raise Forbidden("This page is no longer current: reload it and try again.")
    if not visitor.may_act:
        raise Forbidden("This API key may look at the dashboard, and change nothing.")
    return visitor


TheActor = Annotated[Visitor, Depends(actor)]


def _for_dashboard(caller: Caller) -> Caller:
    if not caller.may(Scope.VIEWER):
        raise Forbidden("This API key has neither the scope viewer nor admin.")
    return caller


def _sessions(farm: AppState) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(_pepper(farm), salt="dashboard session")


def _token(farm: AppState, cookie: str) -> str:
    return hmac.digest(_pepper(farm).encode(), b"dashboard token " + cookie.encode(), "sha256").hex()


def _pepper(farm: AppState) -> str:
    """Raises Unavailable without one: anybody could then write himself a session."""
    pepper = farm.settings.key_pepper.get_secret_value()
    if not pepper:
        raise Unavailable("The dashboard needs HUAFANG_KEY_PEPPER, which this farm does not have.")
    return pepper


def _path(request: Request) -> str:
    """Where the dashboard is mounted: no other path ever sees the cookie."""
    return str(request.scope["root_path"])
