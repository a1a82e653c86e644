"""The limits of a caller's tenant, and how full each is."""

from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, Field

from api.deps import AppState
from api.schemas import example
from common.accounts import admission
from common.accounts.admission import UNLIMITED
from common.accounts.keys import Caller
from common.accounts.limits import NAMES
from common.db import transaction
from common.enums import Tier

OF_PROCESS = ("requests_a_minute", "open_streams")  # each process of the API counts for itself
ONLY_LIMITED = ("images_a_day", "stored_bytes", "requests_a_minute")  # counted while there is a limit

LIMIT = {
    "limit": "images_a_day",
    "used": 1200,
    "allowed": 50_000,
    "resets_at": "2026-11-23T00:00:00Z",
    "counted_by": "farm",
}


class LimitUse(BaseModel):
    """One limit, and how much of it is used."""

    model_config = example(LIMIT)

    limit: str
    used: int | None = Field(description="null: it is only counted while it is limited.")
    allowed: int | None = Field(description="null: unlimited.")
    resets_at: datetime | None = Field(description="When nothing of it is used again, if time alone does that.")
    counted_by: Literal["farm", "process"] = Field(description="`process`: each process of the API counts for itself.")


class LimitUses(BaseModel):
    """The limits of a tenant, and the tiers that it may use."""

    model_config = example({"items": [LIMIT], "tiers": ["standard", "bulk"]})

    items: list[LimitUse]
    tiers: list[Tier]


def read(state: AppState, caller: Caller) -> LimitUses:
    limits = state.limits_of(caller)
    with transaction(state.autocommit) as connection:
        used = admission.read_used(connection, caller.tenant_id)
    requests, ends_in_s, streams = state.requests.used(caller.tenant_id)
    used |= {"requests_a_minute": requests, "open_streams": streams}
    now = datetime.now(UTC).replace(microsecond=0)
    resets = {
        "images_a_day": now + timedelta(seconds=used["seconds_to_midnight"]),
        "requests_a_minute": now + timedelta(seconds=ends_in_s),
    }
    items = []
    for name in NAMES:
        allowed = getattr(limits, name)
        is_counted = allowed is not None or name not in ONLY_LIMITED
        items.append(
            LimitUse(
                limit=name,
                used=used[name] if is_counted else None,
                allowed=allowed,
                resets_at=resets.get(name) if is_counted else None,
                counted_by="process" if name in OF_PROCESS else "farm",
            )
        )
    return LimitUses(items=items, tiers=list(caller.tiers))


def read_limited(state: AppState, caller: Caller) -> list[LimitUse]:
    """Those that are limited. Reads nothing for a tenant without limits."""
    if state.limits_of(caller) == UNLIMITED:
        return []
    return [use for use in read(state, caller).items if use.allowed is not None]
