"""Tenants and their API keys. Knows nothing of HTTP.

A key is `huaf_` and 43 characters; the database holds only its HMAC-SHA256 with the farm's pepper.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, func, insert, select, text, update

from common.accounts.sentences import sentence
from common.db import new_id
from common.enums import Scope, Via
from common.errors import NotFound, Unauthorized
from common.schema import api_keys, tenants

PREFIX = "huaf_"


@dataclass(frozen=True)
class Caller:
    """Who makes a request: tenant, key, scopes; by which way; the id of the request."""

    tenant_id: UUID
    key_id: UUID
    scopes: frozenset[str]
    via: Via = Via.API
    request_id: str | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True)
class NewKey:
    """A new key. Its secret is stored nowhere."""

    id: UUID
    secret: str


def ensure_tenant(connection: Connection, name: str) -> UUID:
    """The tenant of this name, made if it does not exist."""
    found = connection.execute(select(tenants.c.id).where(tenants.c.name == name)).scalar()
    if found is None:
        found = new_id()
        connection.execute(insert(tenants).values(id=found, name=name))
    return UUID(str(found))


def create_key(connection: Connection, tenant_id: UUID, name: str, scopes: Sequence[Scope], pepper: str) -> NewKey:
    key = NewKey(new_id(), PREFIX + secrets.token_urlsafe(32))
    connection.execute(
        insert(api_keys).values(
            id=key.id, tenant_id=tenant_id, name=name, digest=_digest(key.secret, pepper), scopes=list(scopes)
        )
    )
    return key


def authenticate(connection: Connection, secret: str, pepper: str) -> Caller:
    """The caller with this key. Raises Unauthorized when it is unknown or was revoked."""
    row = connection.execute(OWNER, {"digest": _digest(secret, pepper)}).first()
    if row is None:
        raise Unauthorized(sentence("key_refused"))
    return Caller(row.tenant_id, row.id, frozenset(row.scopes))


def find_key(connection: Connection, key_id: UUID) -> Caller | None:
    """The caller with the key of this id; None when it was revoked. The request has authenticated by other means."""
    row = connection.execute(OWNER_BY_ID, {"key": key_id}).first()
    return Caller(row.tenant_id, row.id, frozenset(row.scopes)) if row else None


def revoke_key(connection: Connection, tenant_id: UUID, key_id: UUID) -> None:
    """Revoke a key of this tenant. Repeating it changes nothing. Raises NotFound when it has no such key."""
    mine = (api_keys.c.id == key_id) & (api_keys.c.tenant_id == tenant_id)
    changed = connection.execute(
        update(api_keys).where(mine).values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
    )
    if changed.rowcount == 0:
        raise NotFound(sentence("key_unknown", key=key_id))


def _digest(secret: str, pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), secret.encode("utf-8", "surrogateescape"), hashlib.sha256)


# Finds a key by its digest, at every request.
OWNER = text("SELECT id, tenant_id, scopes FROM api_keys WHERE digest = :digest AND revoked_at IS NULL")

# Finds a key by its id.
OWNER_BY_ID = text("SELECT id, tenant_id, scopes FROM api_keys WHERE id = :key AND revoked_at IS NULL")
