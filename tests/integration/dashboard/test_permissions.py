"""Who may open and do what on the dashboard: every route with every kind of session.

A new route needs an entry in the table: without one these tests fail.
"""

import re
from contextlib import closing
from typing import Literal

import pytest
from sqlalchemy import text

from api.dashboard.app import VIEWS
from common.accounts import tenants
from common.db import new_id, transaction
from common.enums import Scope
from tests.integration.dashboard.test_farm import Visitor
from tests.support.serving import EVERYTHING, Api
from tests.support.stories import Story

# What each route needs, by method and path; the stream of a page needs what the page does.
NEEDED: dict[str, Scope | Literal["open", "a key"]] = {
    "GET /sign-in": "open",
    "POST /sign-in": "open",
    "POST /language": "open",
    "GET /enter/{ticket}": "open",
    "POST /links": "a key",
    "GET /": Scope.VIEWER,
    "GET /usage": Scope.VIEWER,
    "GET /jobs": Scope.VIEWER,
    "GET /jobs/matching": Scope.VIEWER,
    "POST /jobs/matching/{action}": Scope.ADMIN,
    "GET /jobs/{job_id}": Scope.VIEWER,
    "POST /jobs/{job_id}/cancel": Scope.ADMIN,
    "POST /jobs/{job_id}/retry": Scope.ADMIN,
    "POST /jobs/{job_id}/tier": Scope.ADMIN,
    "GET /new": Scope.VIEWER,
    "POST /new/model": Scope.ADMIN,
    "POST /new": Scope.ADMIN,
    "GET /batches": Scope.VIEWER,
    "GET /batches/{batch_id}": Scope.VIEWER,
    "POST /batches/{batch_id}/export": Scope.ADMIN,
    "POST /batches/{batch_id}/retry-failed": Scope.ADMIN,
    "POST /batches/{batch_id}/{action}": Scope.ADMIN,
    "GET /datasets/{dataset_id}": Scope.VIEWER,
    "GET /datasets/{dataset_id}/files/{path:path}": Scope.VIEWER,
    "GET /images": Scope.VIEWER,
    "GET /images/{image_id}": Scope.VIEWER,
    "GET /images/{image_id}/content": Scope.VIEWER,
    "GET /images/{image_id}/file": Scope.VIEWER,
    "GET /images/{image_id}/thumbnail": Scope.VIEWER,
    "GET /workers": Scope.VIEWER,
    "POST /workers/{worker_id}/drain": Scope.OPERATOR,
    "POST /workers/{worker_id}/resume": Scope.OPERATOR,
    "POST /quarantines/lift": Scope.OPERATOR,
    "GET /admin": Scope.VIEWER,
    "GET /admin/audit": Scope.ADMIN,
    "POST /admin/keys": Scope.ADMIN,
    "POST /admin/keys/{key_id}/revoke": Scope.ADMIN,
    "POST /admin/models/{name}/licence": Scope.ADMIN,
    "GET /tenants": Scope.OPERATOR,
    "POST /tenants": Scope.OPERATOR,
    "GET /tenants/{tenant_id}": Scope.OPERATOR,
    "POST /tenants/{tenant_id}": Scope.OPERATOR,
    "POST /tenants/{tenant_id}/suspend": Scope.OPERATOR,
    "POST /tenants/{tenant_id}/resume": Scope.OPERATOR,
    "POST /tenants/{tenant_id}/erase": Scope.OPERATOR,
    "POST /{noun}/{subject}/delete": Scope.ADMIN,
    "POST /sign-out": Scope.VIEWER,  # the last one: it ends the session
}
NOUNS = ("job_id", "batch_id", "dataset_id", "image_id", "worker_id", "key_id", "tenant_id")
IDS = {name: str(new_id()) for name in NOUNS}
IDS |= {"noun": "jobs", "subject": str(new_id())}
IDS |= {"action": "cancel", "name": "mini-zh", "ticket": "none", "path:path": "x"}


def page_of(route: str) -> str:
    return route.replace("GET /live/", "GET /")


def routes() -> list[str]:
    return [f"{method} {route.path}" for view in VIEWS for route in view.router.routes for method in route.methods]


def test_every_route_has_an_entry() -> None:
    assert {page_of(route) for route in routes()} == set(NEEDED)


def verdict(visitor: Visitor, token: str, route: str) -> str:
    """`allowed`, `forbidden`, or `signed out`. An action comes from a page that is open."""
    method, path = route.split()
    for name, value in IDS.items():
        path = path.replace(f"{{{name}}}", value)
    headers = visitor.origin | {"X-CSRF-Token": token}
    if method == "POST" and path != "/sign-in":
        headers["HX-Request"] = "true"
    with visitor.browser.stream(method, f"/dashboard{path}", headers=headers) as answer:
        assert answer.status_code != 503, route  # too busy: it says nothing about the session
        if "sign-in?to=" in answer.headers.get("location", "") or answer.status_code == 401:
            return "signed out"
        if path.startswith("/live/") and answer.status_code == 204:  # see `render_error`
            return "signed out"
        return "forbidden" if answer.status_code == 403 else "allowed"


@pytest.mark.parametrize(
    "scopes", [[Scope.VIEWER], [Scope.ADMIN], [Scope.OPERATOR], EVERYTHING], ids=["viewer", "admin", "operator", "both"]
)
def test_a_session_of_each_kind(api: Api, scopes: list[Scope]) -> None:
    may = {Scope.VIEWER, *scopes}
    with closing(Visitor(api, *scopes)) as visitor:
        token = token_of(visitor)
        in_order = sorted(routes(), key=lambda route: list(NEEDED).index(page_of(route)))
        found = {route: verdict(visitor, token, route) for route in in_order if NEEDED[page_of(route)] != "a key"}
    right = {
        route: "allowed" if NEEDED[page_of(route)] == "open" or NEEDED[page_of(route)] in may else "forbidden"
        for route in found
    }
    right["GET /enter/{ticket}"] = "signed out"  # the ticket is none
    right["POST /sign-in"] = "signed out"  # nor is the key
    assert found == right


@pytest.mark.parametrize("kind", ["none", "expired", "revoked", "suspended"])
def test_a_session_that_is_none_any_more(api: Api, story: Story, kind: str) -> None:
    with closing(Visitor(api, *EVERYTHING)) as visitor:
        token = token_of(visitor)
        with transaction(api.database) as connection:
            if kind == "suspended":
                tenants.suspend(connection, story.tenant())
            elif kind != "none":
                column = {"expired": "expires_at", "revoked": "revoked_at"}[kind]
                connection.execute(text(f"UPDATE api_keys SET {column} = now()"))
        if kind == "none":
            visitor.browser.cookies.clear()
        found = {route: verdict(visitor, token, route) for route in routes() if NEEDED[page_of(route)] in list(Scope)}
    assert found == dict.fromkeys(found, "forbidden" if kind == "suspended" else "signed out")


def test_signing_out_ends_the_session_wherever_its_cookie_is(api: Api) -> None:
    with closing(Visitor(api, *EVERYTHING)) as visitor, api.stranger(cookies=visitor.browser.cookies) as thief:
        assert thief.get("/dashboard/jobs").status_code == 200
        visitor.do("/sign-out")
        assert thief.get("/dashboard/jobs").status_code == 303
        (record,) = visitor_records(api)
    assert record == "dashboard.sign_out"


def visitor_records(api: Api) -> list[str]:
    with transaction(api.database) as connection:
        return list(connection.execute(text("SELECT action FROM audit WHERE action LIKE '%.sign_out'")).scalars())


def token_of(visitor: Visitor) -> str:
    found = re.search('"X-CSRF-Token": "([0-9a-f]+)"', visitor.page("/"))
    assert found
    return found[1]
