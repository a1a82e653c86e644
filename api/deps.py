"""What routes ask for: the farm behind the API, and who is calling."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from api.live.job_watcher import JobWatcher
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
    """The parts that every route works with, made once in `app.py`."""

    settings: Settings
    engine: Engine
    autocommit: Engine  # the same connections, each statement a transaction of its own: no BEGIN, no COMMIT
    messages: Broker
    storage: Storage
    catalog: Catalog
    waiting_room: JobWatcher
    acceptances: Acceptances

    @property
    def default_model(self) -> str:
        return self.settings.default_model or self.catalog.default


async def get_state(request: Request) -> AppState:
    farm: AppState = request.app.state.farm
    return farm


State = Annotated[AppState, Depends(get_state)]

key_scheme = HTTPBearer(scheme_name="key", auto_error=False, description="An API key: `huaf_…`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(key_scheme)]


def caller(farm: State, credentials: Credentials, request: Request) -> Caller:
    """Whoever holds a valid key."""
    if credentials is None:
        raise Unauthorized("This needs an API key: send the header `Authorization: Bearer huaf_…`.")
    with transaction(farm.autocommit) as connection:
        found = authenticate(connection, credentials.credentials, farm.settings.key_pepper.get_secret_value())
    return replace(found, request_id=request.state.request_id)


AnyCaller = Annotated[Caller, Depends(caller)]


def require_scope(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(caller: AnyCaller) -> Caller:
        if not caller.may(scope):
            raise Forbidden(f"This API key lacks the scope {scope}.")
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
