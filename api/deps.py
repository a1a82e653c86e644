"""The dependencies of routes: the application's state, and the caller of the request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer
from sqlalchemy import Engine

from api import sentence
from api.authentication import Lookups
from api.limits.requests import Requests
from api.live.job_watcher import JobWatcher
from api.live.turns import Turns
from common.accounts.farm import Farm
from common.accounts.keys import Caller
from common.accounts.licences import Acceptances
from common.accounts.limits import Limits
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.config import PublicPart, Settings
from common.enums import Scope
from common.errors import Forbidden, Unauthorized, Unavailable
from common.policy.policy import Policy
from common.storage import Storage


@dataclass(frozen=True)
class AppState:
    """What every request shares, made once in `app.py`."""

    settings: Settings
    engine: Engine
    autocommit: Engine  # the same connections, each statement a transaction of its own: no BEGIN, no COMMIT
    probe: Engine  # of readiness, so that it does not wait for a connection
    broker: Broker
    storage: Storage
    farm: Farm
    catalog: Catalog
    policy: Policy
    lookups: Lookups
    job_watcher: JobWatcher
    acceptances: Acceptances
    limits: Limits  # of tenants that have none of their own
    requests: Requests
    # Threads of their own for work that takes long: while S3 is slow or a file is large, other requests stay fast.
    upload_limiter: CapacityLimiter
    inline_limiter: CapacityLimiter  # batches whose prompts are in the request
    conversion_limiter: CapacityLimiter  # files of prompts that a child process converts
    conversion_turns: Turns
    dry_run_limiter: CapacityLimiter
    dry_run_turns: Turns
    parse_limiter: CapacityLimiter
    thumbnail_limiter: CapacityLimiter
    decode_limiter: CapacityLimiter

    @property
    def default_model(self) -> str:
        return self.settings.default_model or self.catalog.default

    def limits_of(self, caller: Caller) -> Limits:
        """The limits of the caller's tenant."""
        return self.limits.with_own(caller.own_limits)


async def get_state(request: Request) -> AppState:
    state: AppState = request.app.state.shared
    return state


State = Annotated[AppState, Depends(get_state)]

key_scheme = HTTPBearer(scheme_name="key", auto_error=False, description="An API key: `huaf_…`.")


async def caller(request: Request, _: Annotated[object, Depends(key_scheme)]) -> Caller:
    """The holder of a valid key. Raises Unauthorized."""
    found: Caller = await request.state.caller()
    return found


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


async def operator(caller: AnyCaller) -> Caller:
    """The caller, if its key concerns the whole farm. Raises OperatorNeeded."""
    caller.require_operator()
    return caller


Operator = Annotated[Caller, Depends(operator)]

AllTenants = Annotated[bool, Query(description="Of all tenants: needs the scope `operator`.")]


def among_all(scope: Scope) -> Callable[[Caller, bool], Awaitable[Caller]]:
    """A dependency: the caller, if its key has this scope, and also `operator` where it asks for any tenant's."""

    async def allowed(
        caller: Annotated[Caller, Depends(require_scope(scope))], all_tenants: AllTenants = False
    ) -> Caller:
        if all_tenants:
            caller.require_operator()
        return replace(caller, all_tenants=all_tenants)

    return allowed


async def audit_reader(caller: AnyCaller, all_tenants: AllTenants = False) -> Caller:
    """The caller, if it administers its tenant; an operator, where it asks for all of them. Raises Forbidden."""
    if all_tenants:
        caller.require_operator()
    elif not caller.may(Scope.ADMIN):
        raise Forbidden(sentence("scope_missing", scope=Scope.ADMIN))
    return replace(caller, all_tenants=all_tenants)


AuditReader = Annotated[Caller, Depends(audit_reader)]
AnyJobsReader = Annotated[Caller, Depends(among_all(Scope.JOBS_READ))]
AnyJobsWriter = Annotated[Caller, Depends(among_all(Scope.JOBS_WRITE))]


async def usage_reader(caller: AnyCaller) -> Caller:
    """The caller, if its key may look at the farm or read jobs. Raises Forbidden."""
    if not caller.may(Scope.VIEWER) and not caller.may(Scope.JOBS_READ):
        raise Forbidden(sentence("scope_missing", scope=Scope.VIEWER))
    return caller


UsageReader = Annotated[Caller, Depends(usage_reader)]


async def is_public(request: Request, state: State, part: PublicPart) -> bool:
    """Whether this request may read that part of the farm: anyone may, or it has a key with the scope `viewer`."""
    if part in state.settings.public_parts:
        return True
    if "authorization" not in request.headers:  # a probe has no key, and has not failed to authenticate
        return False
    try:
        caller: Caller = await request.state.caller()
    except (Unauthorized, Forbidden, Unavailable):
        return False
    return caller.may(Scope.VIEWER)


def require_public(part: PublicPart) -> Callable[[Request, AppState], Awaitable[None]]:
    """A dependency. Raises Unauthorized or Forbidden for a request that may not read that part."""

    async def allowed(request: Request, state: State) -> None:
        if not await is_public(request, state, part):
            await request.state.caller()
            raise Forbidden(sentence("scope_missing", scope=Scope.VIEWER))

    return allowed


async def base_url_of(request: Request) -> str:
    return str(request.base_url)


BaseUrl = Annotated[str, Depends(base_url_of)]


async def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


RequestId = Annotated[str, Depends(request_id_of)]
