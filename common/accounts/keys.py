"""The API keys of tenants: who may do what. Knows nothing of HTTP.

A key is `huaf_` and 43 characters; the database holds only its HMAC-SHA256 under the farm's pepper. It is valid until
it is revoked or has expired, and refused while its tenant is suspended.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, insert, text, update

from common.accounts import sentence
from common.db import new_id
from common.enums import Scope, Tier, Via
from common.errors import NotFound, OperatorNeeded, TenantSuspended, TierNotAllowed, Unauthorized
from common.schema import api_keys

PREFIX = "huaf_"


@dataclass(frozen=True)
class Caller:
    """The key that a request was made with: whose it is, by which way and from which address it came, in which request.

    `all_tenants`: an operator asks for what is any tenant's. `own_limits`: those of its tenant, by name. `tiers`: that
    its tenant may use.
    """

    tenant_id: UUID
    key_id: UUID
    scopes: frozenset[str]
    via: Via = Via.API
    request_id: str | None = None
    address: str | None = None
    all_tenants: bool = False
    own_limits: Mapping[str, Any] = field(default_factory=dict, compare=False)
    tiers: tuple[Tier, ...] = tuple(Tier)

    def may(self, scope: Scope) -> bool:
        """`admin` implies all but `operator`, which implies `viewer`."""
        if scope in self.scopes or (scope == Scope.VIEWER and Scope.OPERATOR in self.scopes):
            return True
        return Scope.ADMIN in self.scopes and scope != Scope.OPERATOR

    def require_operator(self) -> None:
        """Raises OperatorNeeded."""
        if not self.may(Scope.OPERATOR):
            raise OperatorNeeded(sentence("operator_needed"))

    @property
    def reach(self) -> UUID | None:
        """The tenant whose rows it may name; None: any tenant's."""
        return None if self.all_tenants else self.tenant_id

    def require_tier(self, tier: Tier) -> None:
        """Raises TierNotAllowed."""
        if tier not in self.tiers:
            allowed = ", ".join(self.tiers) or "none"
            raise TierNotAllowed(sentence("tier_not_allowed", tier=tier, allowed=allowed))


@dataclass(frozen=True)
class NewKey:
    """A new key. Its secret is not stored, so nothing can show it again."""

    id: UUID
    secret: str


def create_key(
    connection: Connection,
    tenant_id: UUID,
    name: str,
    scopes: Sequence[Scope],
    pepper: str,
    expires_at: datetime | None = None,
) -> NewKey:
    """`expires_at`: from then on it is refused; None: never."""
    key = NewKey(new_id(), PREFIX + secrets.token_urlsafe(32))
    connection.execute(
        insert(api_keys).values(
            id=key.id,
            tenant_id=tenant_id,
            name=name,
            digest=_digest(key.secret, pepper),
            scopes=list(scopes),
            expires_at=expires_at,
        )
    )
    return key


def authenticate(connection: Connection, secret: str, pepper: str) -> Caller:
    """The caller with this secret.

    Raises Unauthorized if no key has it, or if the key was revoked or has expired; TenantSuspended.
    """
    return _caller(connection.execute(OWNER, {"digest": _digest(secret, pepper)}).first())


def find_key(connection: Connection, key_id: UUID) -> Caller:
    """The caller with this key, without its secret: only for sessions. Raises as `authenticate`."""
    return _caller(connection.execute(OWNER_BY_ID, {"key": key_id}).first())


def _caller(row: Row[Any] | None) -> Caller:
    if row is None:
        raise Unauthorized(sentence("key_unknown"))
    if row.has_expired:
        raise Unauthorized(sentence("key_expired", at=row.expires_at.astimezone(UTC)))
    if row.is_suspended:
        raise TenantSuspended(sentence("tenant_suspended"))
    tiers = tuple(Tier) if row.tiers is None else tuple(tier for tier in Tier if tier in row.tiers)
    return Caller(row.tenant_id, row.id, frozenset(row.scopes), own_limits=row.limits, tiers=tiers)


def revoke_key(connection: Connection, tenant_id: UUID, key_id: UUID) -> None:
    """Revoke a key of this tenant. A second time is no error. Raises NotFound if the tenant has no such key."""
    own = (api_keys.c.id == key_id) & (api_keys.c.tenant_id == tenant_id)
    changed = connection.execute(
        update(api_keys).where(own).values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
    )
    if changed.rowcount == 0:
        raise NotFound(sentence("key_missing", key=key_id))


def revoke_all(connection: Connection, tenant_id: UUID) -> None:
    """Revoke all keys of this tenant."""
    connection.execute(REVOKE_ALL, {"tenant": tenant_id})


# Every request executes these, so they are built once.

_KEYS = """
    SELECT api_keys.id, tenant_id, scopes, expires_at, expires_at <= now() AS has_expired,
           tenants.suspended_at IS NOT NULL AS is_suspended, limits, cast(tiers AS text[]) AS tiers
    FROM api_keys JOIN tenants ON tenants.id = api_keys.tenant_id WHERE revoked_at IS NULL"""

# Find a key by its digest.
OWNER = text(f"{_KEYS} AND api_keys.digest = :digest")

# Find a key by its id.
OWNER_BY_ID = text(f"{_KEYS} AND api_keys.id = :key")

# Revoke the keys of a tenant.
REVOKE_ALL = text("UPDATE api_keys SET revoked_at = now() WHERE tenant_id = :tenant AND revoked_at IS NULL")


def _digest(secret: str, pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), secret.encode("utf-8", "surrogateescape"), hashlib.sha256)
