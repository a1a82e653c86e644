"""Keys and models, for who administers a tenant. Secrets are nowhere to be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from api.crew import read_crew
from api.routes.models import Model, shape
from common import licences
from common.catalog import Catalog


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


def find_models(connection: Connection, tenant_id: UUID, catalog: Catalog, default: str) -> Sequence[Model]:
    """As `GET /v1/models` shows them: whether the licence is accepted, who serves them, where they are resident."""
    crew, accepted = read_crew(connection), licences.accepted(connection, tenant_id)
    return [shape(entry, crew, accepted, default) for entry in catalog.models.values()]


KEYS = text("""
    SELECT id, name, scopes, created_at, revoked_at FROM api_keys WHERE tenant_id = :tenant
    ORDER BY revoked_at IS NOT NULL, id DESC
""")
