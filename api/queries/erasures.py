"""Erasures of tenants as an operator sees them: what is left, what is kept, and what the bucket has. Reads only."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api import sentence
from api.schemas import example
from common.deletion import ownership
from common.deletion.ownership import MOST_COUNTED
from common.errors import NotFound

LISTING: dict[str, Any] = {"objects": 41_873, "unnamed": 0, "keys": []}
ERASURE: dict[str, Any] = {
    "tenant_id": "019c2f5e-1111-7222-8333-444455556666",
    "erased_at": "2026-11-22T08:00:00Z",
    "finished_at": "2026-11-22T08:02:10Z",
    "left": {"jobs": 0, "images": 0, "objects_to_delete": 0},
    "kept": [{"table": "usage_days", "rows": 12, "reason": "The totals of its usage."}],
    "bucket": LISTING,
}


class KeptRows(BaseModel):
    table: str
    rows: int = Field(description=f"{MOST_COUNTED} are as many or more.")
    reason: str


class Listing(BaseModel):
    """What a listing of the whole bucket has found, after nothing else was left of the tenant."""

    objects: int = Field(description="That were listed, of all tenants.")
    unnamed: int = Field(description="Of these, that no row of another tenant names: they may be the erased one's.")
    keys: list[str] = Field(description="The first of these.")


class Erasure(BaseModel):
    """How far the erasure of a tenant has come."""

    model_config = example(ERASURE)

    tenant_id: UUID
    erased_at: datetime
    finished_at: datetime | None = Field(description="Null: something is left, or the bucket is being listed.")
    left: dict[str, int] = Field(
        description=f"Rows that are still to be deleted, by table; {MOST_COUNTED} are as many or more."
        " `objects_to_delete` are pictures and files."
    )
    kept: list[KeptRows]
    bucket: Listing | None = Field(description="Null: it was not listed yet.")


def find_erasure(connection: Connection, tenant_id: UUID) -> Erasure:
    """Raises NotFound, also for a tenant that was not erased."""
    row = connection.execute(READ_ERASURE, {"tenant": tenant_id}).first()
    if row is None:
        raise NotFound(sentence("tenant_not_found", tenant=tenant_id))
    if row.erased_at is None:
        raise NotFound(sentence("tenant_not_erased", tenant=tenant_id))
    kept = ownership.count_kept(connection, tenant_id)
    return Erasure(
        tenant_id=tenant_id,
        erased_at=row.erased_at,
        finished_at=row.erasure_finished_at,
        left=ownership.count_left(connection, tenant_id),
        kept=[
            KeptRows(table=table, rows=kept[table], reason=str(of.reason))
            for table, of in ownership.KEPT.items()
            if kept[table]
        ],
        bucket=Listing.model_validate(row.erasure_listing) if row.erasure_finished_at else None,
    )


# Read the erasure of a tenant.
READ_ERASURE = text("SELECT erased_at, erasure_finished_at, erasure_listing FROM tenants WHERE id = :tenant")
