"""The audit as administrators read it: a tenant's own, or that of all for operators. Reads only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api.schemas import example

RECORD: dict[str, Any] = {
    "id": "019c2f60-2222-7222-8333-444455556666",
    "at": "2026-11-22T08:00:06Z",
    "tenant": "default",
    "key": "admin",
    "key_id": "019c2f5f-1111-7222-8333-444455556666",
    "via": "api",
    "address": "203.0.113.7",
    "action": "job.cancel",
    "subject": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081",
    "acted_on": "the web shop",
    "detail": {},
    "request_id": "019c2f6e-7d53-7c1e-a0f2-5b8f0d6d1c11",
}


class AuditRecord(BaseModel):
    """Who did what, to whose, and from where."""

    model_config = example(RECORD)

    id: UUID
    at: datetime
    tenant: str = Field(description="Of the key.")
    key: str = Field(description="The name of the key that it was done with.")
    key_id: UUID
    via: str = Field(description="`api`, `dashboard` or `shell`.")
    address: str | None = Field(description="Of the client, as the API saw it.")
    action: str
    subject: str | None = Field(description="What it was done to: an id or a name; null: the jobs of a filter.")
    acted_on: str | None = Field(description="The tenant whose the subject is; null: it is gone.")
    detail: dict[str, Any]
    request_id: str | None


def find_audit_records(
    connection: Connection, tenant_id: UUID | None, before: UUID | None, limit: int
) -> Sequence[AuditRecord]:
    """The newest first: those older than `before`. No tenant: what the keys of all have done."""
    page = {"tenant": tenant_id, "before": before or UUID(int=2**128 - 1), "limit": limit}
    rows = connection.execute(OWN_RECORDS if tenant_id else ALL_RECORDS, page)
    return [AuditRecord.model_validate(dict(row._mapping)) for row in rows]


COLUMNS = """
    SELECT record.id, record.at, owner.name AS tenant, record.key_id, api_keys.name AS key, record.via, record.address,
           record.action, record.subject, record.detail, record.request_id,
           CASE WHEN record.acted_on_id IS NULL THEN owner.name ELSE other.name END AS acted_on
    FROM audit AS record JOIN api_keys ON api_keys.id = record.key_id
    JOIN tenants AS owner ON owner.id = record.tenant_id LEFT JOIN tenants AS other ON other.id = record.acted_on_id"""

# A page of what a tenant's keys have done.
OWN_RECORDS = text(f"""
    {COLUMNS} WHERE record.tenant_id = :tenant AND record.id < :before ORDER BY record.id DESC LIMIT :limit
""")

# A page of what all keys have done.
ALL_RECORDS = text(f"{COLUMNS} WHERE record.id < :before ORDER BY record.id DESC LIMIT :limit")
