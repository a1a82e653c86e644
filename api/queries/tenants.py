"""Tenants as an operator sees them: their settings, and how much they have. Reads only."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api import sentence
from api.schemas import example
from common.enums import Tier
from common.errors import NotFound
from common.queue.lanes import EXACT

TENANT: dict[str, Any] = {
    "id": "019c2f5e-1111-7222-8333-444455556666",
    "name": "the web shop",
    "weight": 2,
    "limits": {"waiting_images": 10_000},
    "tiers": ["standard", "bulk"],
    "keep_pictures_days": 30,
    "keep_rows_days": None,
    "created_at": "2026-11-22T06:00:00Z",
    "suspended_at": None,
    "erased_at": None,
    "erasure_finished_at": None,
    "keys": 3,
    "open_images": 120,
}


class Tenant(BaseModel):
    model_config = example(TENANT)

    id: UUID
    name: str
    weight: float = Field(description="Its share of the farm, beside those of the others that have work.")
    limits: dict[str, int] = Field(description="By name; what is missing is as in the settings of the farm.")
    tiers: list[Tier] | None = Field(description="That it may use; null: all.")
    keep_pictures_days: int | None = Field(description="After the end of a job; null: for good.")
    keep_rows_days: int | None = Field(description="After the end of a job; null: for good.")
    created_at: datetime
    suspended_at: datetime | None = Field(
        description="Since then its keys are refused, and nothing of it that waits is rendered."
    )
    erased_at: datetime | None = Field(description="Since then all that it has is deleted, for good.")
    erasure_finished_at: datetime | None = Field(
        description="Since then nothing is left of it but what `GET /v1/tenants/{id}/erasure` names."
    )
    keys: int = Field(description="That are valid.")
    open_images: int = Field(description="That have not ended.")


def find_tenants(connection: Connection, before: UUID | None, limit: int, name: str | None = None) -> list[Tenant]:
    """The newest first: those older than `before`. `name`: only the one of this name."""
    page = {"before": before or UUID(int=2**128 - 1), "limit": limit, "name": name}
    return [Tenant.model_validate(dict(row._mapping)) for row in connection.execute(READ_TENANTS, page)]


def find_tenant(connection: Connection, tenant_id: UUID) -> Tenant:
    """Raises NotFound."""
    row = connection.execute(READ_TENANT, {"tenant": tenant_id}).first()
    if row is None:
        raise NotFound(sentence("tenant_not_found", tenant=tenant_id))
    return Tenant.model_validate(dict(row._mapping))


COLUMNS = f"""
    SELECT tenants.id, name, weight, limits, tiers::text[] AS tiers, keep_pictures_days, keep_rows_days, created_at,
           suspended_at, erased_at, erasure_finished_at,
           (SELECT count(*) FROM api_keys WHERE api_keys.tenant_id = tenants.id AND revoked_at IS NULL
                AND (expires_at IS NULL OR expires_at > now())) AS keys,
           (SELECT coalesce(sum(open), 0)::bigint FROM {EXACT} AS lanes WHERE lanes.tenant_id = tenants.id)
               AS open_images
    FROM tenants"""

# A page of tenants.
READ_TENANTS = text(f"""
    {COLUMNS} WHERE tenants.id < :before AND (cast(:name AS text) IS NULL OR name = :name)
    ORDER BY tenants.id DESC LIMIT :limit
""")

# One tenant.
READ_TENANT = text(f"{COLUMNS} WHERE tenants.id = :tenant")
