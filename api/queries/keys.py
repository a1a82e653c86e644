"""API keys as an administrator of their tenant sees them. The farm stores no secret, only its HMAC."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, text

KEY = {
    "id": "019c2f5f-1111-7222-8333-444455556666",
    "name": "the web shop",
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": "2026-11-22T06:00:00Z",
    "revoked_at": None,
}


class Key(BaseModel):
    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


def find_keys(connection: Connection, tenant_id: UUID) -> list[Key]:
    """Oldest first, revoked ones too."""
    return [Key.model_validate(dict(row._mapping)) for row in connection.execute(READ_KEYS, {"tenant": tenant_id})]


# The keys of a tenant, oldest first.
READ_KEYS = text("""
    SELECT id, name, scopes, created_at, revoked_at FROM api_keys WHERE tenant_id = :tenant ORDER BY id
""")
