"""What routes ask for: the farm behind the API, and who is calling."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from api.live.job_watcher import WaitingRoom
from common.accounts.licences import Acceptances
from common.accounts.tenants import Caller, authenticate
from common.broker import Messages
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import transaction
from common.enums import Scope
from common.errors import Forbidden, Unauthorized
from common.storage import Storage


@dataclass(frozen=True)
class Farm:
    """The parts that every route works with, made once in `app.py`."""

    settings: Settings
    engine: Engine
    autocommit: Engine  # the same connections, each statement a transaction of its own: no BEGIN, no COMMIT
    messages: Messages
    storage: Storage
    catalog: Catalog
    waiting_room: WaitingRoom
    acceptances: Acceptances

    @property
    def default_model(self) -> str:
        return self.settings.default_model or self.catalog.default


async def the_farm(request: Request) -> Farm:
    farm: Farm = request.app.state.farm
    return farm


TheFarm = Annotated[Farm, Depends(the_farm)]

key_scheme = HTTPBearer(scheme_name="key", auto_error=False, description="An API key: `huaf_…`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(key_scheme)]


def caller(farm: TheFarm, credentials: Credentials, request: Request) -> Caller:
    """Whoever holds a valid key."""
    if credentials is None:
        raise Unauthorized("This needs an API key: send the header `Authorization: Bearer huaf_…`.")
    with transaction(farm.autocommit) as connection:
        found = authenticate(connection, credentials.credentials, farm.settings.key_pepper.get_secret_value())
    return replace(found, request_id=request.state.request_id)


AnyCaller = Annotated[Caller, Depends(caller)]


def who_may(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(caller: AnyCaller) -> Caller:
        if not caller.may(scope):
            raise Forbidden(f"This API key lacks the scope {scope}.")
        return caller

    return allowed


JobsReader = Annotated[Caller, Depends(who_may(Scope.JOBS_READ))]
JobsWriter = Annotated[Caller, Depends(who_may(Scope.JOBS_WRITE))]
BatchesWriter = Annotated[Caller, Depends(who_may(Scope.BATCHES_WRITE))]
DatasetsWriter = Annotated[Caller, Depends(who_may(Scope.DATASETS_WRITE))]
Viewer = Annotated[Caller, Depends(who_may(Scope.VIEWER))]
Admin = Annotated[Caller, Depends(who_may(Scope.ADMIN))]


async def base_url_of(request: Request) -> str:
    return str(request.base_url)


BaseUrl = Annotated[str, Depends(base_url_of)]


async def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


RequestId = Annotated[str, Depends(request_id_of)]
