"""The answers to requests that fail: every error of the API as `application/problem+json` (RFC 9457).

Maps each kind of exception to a status, a code and a sentence. No answer contains a traceback.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from api import sentence
from common import failures
from common.accounts.keys import Caller
from common.db import transaction
from common.deletion import tombstones
from common.deletion.tombstones import Tombstone
from common.errors import (
    EncodingUnsupported,
    Error,
    FieldError,
    Gone,
    Invalid,
    LimitReached,
    NotFound,
    RefusedByPolicy,
    Unavailable,
    pydantic_sentence,
)
from common.log import log_event
from common.sentences import Sentence

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
MOST_FIELDS = 50  # that an answer names
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class Refused(HTTPException):
    """An error of the domain, raised while a body is read: FastAPI passes on no other exception from there."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.status, error.message)
        self.error = error


class WrongField(BaseModel):
    field: str = Field(examples=["steps"])
    message: str = Field(examples=["is 1000; it must be 1 to 150"])


TOMBSTONE = TypeAdapter(Tombstone)


class Problem(BaseModel):
    """Why a request failed."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    detail: str = Field(description="One sentence for people.", examples=["steps is 1000; it must be 1 to 150."])
    code: str = Field(description="The same for programs.", examples=["invalid"])
    errors: list[WrongField] = Field(description="The fields that are wrong.")
    tombstone: Tombstone | None = Field(None, description="What is known of a thing that was deleted (410).")
    request_id: str | None = Field(examples=["019c2f6e-7d53-7c1e-a0f2-5b8f0d6d1c11"])
    limit: str | None = Field(None, description="The limit of the tenant that is reached.", examples=["images_a_day"])
    used: int | None = Field(None, description="How much of it is used.", examples=[50000])
    allowed: int | None = Field(None, description="How much of it may be used.", examples=[50000])


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Error, render_error)
    app.add_exception_handler(RequestValidationError, render_invalid)
    app.add_exception_handler(HTTPException, render_http_error)


async def render_error(request: Request, error: Exception) -> Response:
    """An error of the domain."""
    assert isinstance(error, Error)
    if isinstance(error, NotFound):
        try:
            tombstone = await find_tombstone(request, error, request.state.caller)
        except Error as reason:  # the database is down by now
            return await render_error(request, reason)
        if tombstone:
            gone = describe_tombstone(tombstone)
            return problem(request, Gone.status, Gone.code, gone, **tombstone_content(tombstone))
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, EncodingUnsupported):
        headers["Accept-Encoding"] = "identity"
    if isinstance(error, LimitReached) and error.limit:
        return limit_reached(request, error)
    if isinstance(error, Unavailable | LimitReached):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, Unavailable):
        log_event("request_unavailable", request=request_id(request), path=request.url.path, reason=error.message)
    more = {"rule": error.rule, "policy": error.policy} if isinstance(error, RefusedByPolicy) else {}
    return problem(request, error.status, error.code, error.message, error.fields, headers, **more)


def limit_reached(request: Request, error: LimitReached) -> Response:
    """A limit of the tenant: which, how full it is, and when trying again may help."""
    quota = getattr(request.state, "quota", None)
    if quota:
        quota.note(error)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    about: dict[str, Any] = {"limit": error.limit, "used": error.used, "allowed": error.allowed}
    return problem(request, error.status, error.code, error.message, headers=headers, **about)


async def find_tombstone(
    request: Request, error: NotFound, caller: Callable[[], Awaitable[Caller]]
) -> Tombstone | None:
    """What was deleted of the ids that the error names, if the caller's tenant deleted one of them."""
    ids = [value for value in error.message.params.values() if isinstance(value, UUID)]
    if not ids:
        return None

    def find(tenant_id: UUID) -> Tombstone | None:
        with transaction(request.app.state.shared.autocommit) as connection:
            return tombstones.find(connection, tenant_id, ids)

    return await run_in_threadpool(find, (await caller()).tenant_id)


def describe_tombstone(tombstone: Tombstone) -> Sentence:
    kind, at, left = tombstone.kind.value, f"{tombstone.deleted_at:%Y-%m-%d %H:%M}", tombstone.pictures_left
    if left:
        return sentence("deleted_with_pictures_left", kind=kind, id=tombstone.id, at=at, left=left)
    return sentence("deleted", kind=kind, id=tombstone.id, at=at)


def tombstone_content(tombstone: Tombstone) -> dict[str, Any]:
    """What an answer says of it beside the problem."""
    return {"tombstone": json.loads(TOMBSTONE.dump_json(tombstone))}


async def render_invalid(request: Request, error: Exception) -> Response:
    """A request that does not match the schema of its route: each wrong field by its name."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        reason = found[0].get("ctx", {}).get("error", "it cannot be read")
        wrong = [FieldError("body", sentence("not_json", reason=reason))]
        return problem(request, 400, "not_json", Invalid.of(wrong).message, wrong)
    if isinstance(error.body, bytes) and error.body:  # not parsed, since its Content-Type is not JSON
        wrong = [FieldError("Content-Type", sentence("unread_as_json"))]
        return problem(request, 415, CODES[415], Invalid.of(wrong).message, wrong)
    wrong = [field_error(one) for one in found]
    return problem(request, 422, "invalid", Invalid.of(wrong).message, wrong)


async def render_http_error(request: Request, error: Exception) -> Response:
    """What is refused before a route runs: an unknown path or method, a body that is too large or incomplete."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return await render_error(request, error.error)
    detail = sentence("path_unknown", path=request.url.path) if error.status_code == 404 else error.detail
    code = CODES.get(error.status_code, "invalid" if error.status_code < 500 else failures.INTERNAL_ERROR)
    wrong = [FieldError("body", Sentence(detail, code, {}))] if error.status_code in (400, 413) else []
    headers = {"Allow": allowed_methods(request)} if error.status_code == 405 else error.headers
    return problem(request, error.status_code, code, detail, wrong, headers)


def allowed_methods(request: Request) -> str:
    """All methods of the path. Starlette names those of one of its routes, and none that the middleware answers."""
    path = getattr(request.scope.get("route"), "path_format", "")  # as in the description: without converters
    methods = {method.upper() for method in request.app.openapi()["paths"].get(path, {})} or {"GET"}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def render_server_error(request: Request) -> Response:
    """For an unexpected exception, inside its `except`: logs the traceback with the request's id."""
    log_event("request_failed", exc_info=True, request=request_id(request), path=request.url.path)
    return problem(
        request, 500, failures.INTERNAL_ERROR, failures.internal_error(request_id(request) or "request_failed")
    )


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    content = problem_content(status, code, detail, errors[:MOST_FIELDS], request_id(request)) | more
    return Response(json.dumps(content, ensure_ascii=False), status, headers, MEDIA_TYPE)


def problem_content(
    status: int, code: str, detail: str, errors: Sequence[FieldError] = (), request_id: str | None = None
) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"field": error.field, "message": error.message} for error in errors],
        "request_id": request_id,
    }


def request_id(request: Request) -> str | None:
    return getattr(request.state, "request_id", None)


def field_error(error: Mapping[str, Any]) -> FieldError:
    """One of pydantic's errors. Its location starts with the part of the request: body, query, path or header."""
    part, *path = error["loc"]
    name = ".".join(map(str, path)) or part
    return FieldError(name.title() if part == "header" else name, pydantic_sentence(error))
