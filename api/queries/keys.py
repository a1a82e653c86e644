"""API keys as an administrator of their tenant sees them. The farm stores no secret, only its HMAC."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from api.schemas import example

KEY = {
    "id": "019c2f5f-1111-7222-8333-444455556666",
    "name": "the web shop",
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": "2026-11-22T06:00:00Z",
    "revoked_at": None,
    "expires_at": None,
}


class Key(BaseModel):
    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = Field(description="From then on it is refused; null: never.")


class KeyWithSecret(Key):
    model_config = example(KEY | {"secret": "huaf_ExDxfhBO4NaaMcl-r6-7gAXTF6ouSXkj6TiEkresTt4"})

    secret: str = Field(description="Returned only here; the farm stores its HMAC.")


def find_keys(connection: Connection, tenant_id: UUID) -> list[Key]:
    """Oldest first, revoked ones too."""
    return [Key.model_validate(dict(row._mapping)) for row in connection.execute(READ_KEYS, {"tenant": tenant_id})]


def find_key(connection: Connection, key_id: UUID) -> Key:
    """A key that there is."""
    return Key.model_validate(dict(connection.execute(READ_KEY, {"key": key_id}).one()._mapping))


COLUMNS = "SELECT id, name, scopes, created_at, revoked_at, expires_at FROM api_keys"

# The keys of a tenant, oldest first.
READ_KEYS = text(f"{COLUMNS} WHERE tenant_id = :tenant ORDER BY id")

# One key.
READ_KEY = text(f"{COLUMNS} WHERE id = :key")
