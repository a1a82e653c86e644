"""Keys, for who administers a tenant. Secrets are nowhere to be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Key:
    id: UUID
    name: str
    scopes: Sequence[str]
    created_at: datetime
    revoked_at: datetime | None


def find_keys(connection: Connection, tenant_id: UUID) -> Sequence[Key]:
    """Those that can be used first, the newest of them first."""
    return [Key(**row._mapping) for row in connection.execute(KEYS, {"tenant": tenant_id})]


KEYS = text("""
    SELECT id, name, scopes, created_at, revoked_at FROM api_keys WHERE tenant_id = :tenant
    ORDER BY revoked_at IS NOT NULL, id DESC
""")
