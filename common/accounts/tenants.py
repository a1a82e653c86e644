"""Tenants and their API keys: who may do what. Knows nothing of HTTP.

A key is `huaf_` and 43 characters; the database holds only its HMAC-SHA256 under the farm's pepper.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, func, insert, select, text, update

from common.accounts import sentence
from common.db import new_id
from common.enums import Scope, Via
from common.errors import NotFound, OperatorNeeded, Unauthorized
from common.schema import api_keys, tenants

PREFIX = "huaf_"
OPERATOR = "default"  # the tenant that `huafang admin bootstrap` makes: its admins run the farm


@dataclass(frozen=True)
class Caller:
    """The key that a request was made with: whose it is, by which way it came, and in which request."""

    tenant_id: UUID
    key_id: UUID
    scopes: frozenset[str]
    via: Via = Via.API
    request_id: str | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope != Scope.OPERATOR)

    def require_operator(self) -> None:
        """Raises OperatorNeeded."""
        if not self.may(Scope.OPERATOR):
            raise OperatorNeeded(sentence("operator_needed"))


@dataclass(frozen=True)
class NewKey:
    """A new key. Its secret is not stored, so nothing can show it again."""

    id: UUID
    secret: str


def ensure_tenant(connection: Connection, name: str) -> UUID:
    """The tenant of that name, made if there is none."""
    found = connection.execute(select(tenants.c.id).where(tenants.c.name == name)).scalar()
    if found is None:
        found = new_id()
        connection.execute(insert(tenants).values(id=found, name=name))
    return UUID(str(found))


def is_operator(connection: Connection, caller: Caller) -> bool:
    """Whether the caller runs the farm: only then it may see what no tenant does."""
    if Scope.ADMIN not in caller.scopes:
        return False
    return connection.execute(select(tenants.c.name).where(tenants.c.id == caller.tenant_id)).scalar() == OPERATOR


def create_key(connection: Connection, tenant_id: UUID, name: str, scopes: Sequence[Scope], pepper: str) -> NewKey:
    key = NewKey(new_id(), PREFIX + secrets.token_urlsafe(32))
    connection.execute(
        insert(api_keys).values(
            id=key.id, tenant_id=tenant_id, name=name, digest=_digest(key.secret, pepper), scopes=list(scopes)
        )
    )
    return key


def authenticate(connection: Connection, secret: str, pepper: str) -> Caller:
    """The caller with this secret. Raises Unauthorized if no key has it, or if the key was revoked."""
    row = connection.execute(OWNER, {"digest": _digest(secret, pepper)}).first()
    if row is None:
        raise Unauthorized(sentence("key_unknown"))
    return Caller(row.tenant_id, row.id, frozenset(row.scopes))


def find_key(connection: Connection, key_id: UUID) -> Caller | None:
    """The caller with this key, without its secret: only for sessions. None if it was revoked."""
    row = connection.execute(OWNER_BY_ID, {"key": key_id}).first()
    return Caller(row.tenant_id, row.id, frozenset(row.scopes)) if row else None


def revoke_key(connection: Connection, tenant_id: UUID, key_id: UUID) -> None:
    """Revoke a key of this tenant. A second time is no error. Raises NotFound if the tenant has no such key."""
    own = (api_keys.c.id == key_id) & (api_keys.c.tenant_id == tenant_id)
    changed = connection.execute(
        update(api_keys).where(own).values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
    )
    if changed.rowcount == 0:
        raise NotFound(sentence("key_missing", key=key_id))


# Every request executes these, so they are built once.

# Find a key by its digest.
OWNER = text("SELECT id, tenant_id, scopes FROM api_keys WHERE digest = :digest AND revoked_at IS NULL")
# Find a key by its id.
OWNER_BY_ID = text("SELECT id, tenant_id, scopes FROM api_keys WHERE id = :key AND revoked_at IS NULL")


def _digest(secret: str, pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), secret.encode("utf-8", "surrogateescape"), hashlib.sha256)
