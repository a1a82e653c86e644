"""The limits of the caller's tenant over HTTP."""

from fastapi import APIRouter

from api.deps import AnyCaller, State
from api.services import limits
from api.services.limits import LimitUses

router = APIRouter(tags=["limits"])


@router.get("/v1/limits", operation_id="readLimits", summary="Read your limits, and how full each is")
def read_limits(caller: AnyCaller, state: State) -> LimitUses:
    """Any key may. Beyond a limit, a request answers 429 `limit_reached` with `limit`, `used` and `allowed`, and
    `Retry-After` if time helps. Every answer under /v1 has the fields `RateLimit-Policy` and `RateLimit`, if the tenant
    has a limit.
    """
    return limits.read(state, caller)
