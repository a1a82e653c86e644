"""The dependencies of routes: the application's state, and the caller of the request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from api import sentence
from api.live.job_watcher import JobWatcher
from api.turns import Turns
from common.accounts.licences import Acceptances
from common.accounts.tenants import Caller, authenticate
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import transaction
from common.enums import Scope
from common.errors import Forbidden, Unauthorized
from common.storage import Storage


@dataclass(frozen=True)
class AppState:
    """What every request shares, made once in `app.py`."""

    settings: Settings
    engine: Engine
    autocommit: Engine  # the same connections, each statement a transaction of its own: no BEGIN, no COMMIT
    broker: Broker
    storage: Storage
    catalog: Catalog
    job_watcher: JobWatcher
    acceptances: Acceptances
    # Threads of their own for work that takes long: while S3 is slow or a file is large, other requests stay fast.
    upload_limiter: CapacityLimiter
    inline_limiter: CapacityLimiter  # batches whose prompts are in the request
    dry_run_limiter: CapacityLimiter
    dry_run_turns: Turns
    thumbnail_limiter: CapacityLimiter
    decode_limiter: CapacityLimiter

    @property
    def default_model(self) -> str:
        return self.settings.default_model or self.catalog.default


async def get_state(request: Request) -> AppState:
    state: AppState = request.app.state.shared
    return state


State = Annotated[AppState, Depends(get_state)]

key_scheme = HTTPBearer(scheme_name="key", auto_error=False, description="An API key: `huaf_…`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(key_scheme)]


def caller(state: State, credentials: Credentials, request: Request) -> Caller:
    """The holder of a valid key. Raises Unauthorized."""
    if credentials is None:
        raise Unauthorized(sentence("key_missing"))
    with transaction(state.autocommit) as connection:
        found = authenticate(connection, credentials.credentials, state.settings.key_pepper.get_secret_value())
    return replace(found, request_id=request.state.request_id)


AnyCaller = Annotated[Caller, Depends(caller)]


def require_scope(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: the caller, if its key has this scope. Raises Forbidden."""

    async def allowed(caller: AnyCaller) -> Caller:
        if not caller.may(scope):
            raise Forbidden(sentence("scope_missing", scope=scope))
        return caller

    return allowed


JobsReader = Annotated[Caller, Depends(require_scope(Scope.JOBS_READ))]
JobsWriter = Annotated[Caller, Depends(require_scope(Scope.JOBS_WRITE))]
BatchesWriter = Annotated[Caller, Depends(require_scope(Scope.BATCHES_WRITE))]
DatasetsWriter = Annotated[Caller, Depends(require_scope(Scope.DATASETS_WRITE))]
Viewer = Annotated[Caller, Depends(require_scope(Scope.VIEWER))]
Admin = Annotated[Caller, Depends(require_scope(Scope.ADMIN))]


async def base_url_of(request: Request) -> str:
    return str(request.base_url)


BaseUrl = Annotated[str, Depends(base_url_of)]


async def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


RequestId = Annotated[str, Depends(request_id_of)]
