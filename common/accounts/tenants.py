"""Tenants: created, changed, suspended, resumed, erased. Each change is one statement. Their keys are in `keys`.

create ──► suspend ──► resume
              ├──── its keys are refused, what waits is kept and not claimed, what is being rendered is finished
              └──► erase      for good: what it has is deleted step by step, see `common.deletion.erasure`
"""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from common.accounts import keys, sentence
from common.accounts.limits import check
from common.db import new_id
from common.errors import Conflict, NotFound

OPERATOR = "default"  # the tenant that `huafang admin bootstrap` makes


def ensure_tenant(connection: Connection, name: str) -> UUID:
    """The tenant of that name, made if there is none."""
    connection.execute(CREATE, {"id": new_id(), "name": name})
    return UUID(str(connection.execute(FIND, {"name": name}).scalar_one()))


def create(connection: Connection, name: str, settings: Mapping[str, Any]) -> UUID:
    """Create a tenant. `settings`: as in `change`. Raises Conflict if there is one of that name, Invalid."""
    tenant_id = connection.execute(CREATE, {"id": new_id(), "name": name}).scalar()
    if tenant_id is None:
        raise Conflict(sentence("tenant_exists", name=name))
    change(connection, UUID(str(tenant_id)), settings)
    return UUID(str(tenant_id))


def change(connection: Connection, tenant_id: UUID, settings: Mapping[str, Any]) -> None:
    """Change these of its settings: those of SETTINGS. Limits by name: the others stay, null is that of the farm.

    Raises NotFound, Conflict if another tenant has the new name or this one was erased, Invalid.
    """
    check(settings.get("limits", {}))
    given = {**settings, **({"limits": json.dumps(settings["limits"])} if "limits" in settings else {})}
    changes = ", ".join(SETTINGS[name] for name in given) or "id = id"
    try:
        done = connection.execute(
            text(f"UPDATE tenants SET {changes} WHERE id = :tenant AND erased_at IS NULL"),
            {**given, "tenant": tenant_id},
        )
    except IntegrityError as error:
        raise Conflict(sentence("tenant_exists", name=settings.get("name"))) from error
    if not done.rowcount:
        raise_if_erased(connection, tenant_id)


def suspend(connection: Connection, tenant_id: UUID) -> bool:
    """Whether this call did it. Raises NotFound."""
    return _switch(connection, SUSPEND, tenant_id)


def resume(connection: Connection, tenant_id: UUID) -> bool:
    """Whether this call did it. Raises NotFound, or Conflict for a tenant that was erased."""
    if not _switch(connection, RESUME, tenant_id):
        raise_if_erased(connection, tenant_id)
        return False
    return True


def erase(connection: Connection, tenant_id: UUID) -> bool:
    """Mark a suspended tenant as erased, and revoke its keys; whether this call did it.

    A second call changes nothing, unless the listing at the end found objects that no row names: then the bucket is
    listed again. Raises NotFound, or Conflict for a tenant that is not suspended or runs the farm.
    """
    tenant = connection.execute(LOCK, {"tenant": tenant_id}).first()
    if tenant is None:
        raise NotFound(sentence("tenant_missing", tenant=tenant_id))
    if tenant.name == OPERATOR:
        raise Conflict(sentence("tenant_of_operator"))
    if tenant.suspended_at is None:
        raise Conflict(sentence("tenant_not_suspended"))
    connection.execute(ERASE, {"tenant": tenant_id})
    keys.revoke_all(connection, tenant_id)
    return tenant.erased_at is None


def raise_if_erased(connection: Connection, tenant_id: UUID) -> None:
    """Raises Conflict for a tenant that was erased, NotFound where there is none."""
    tenant = connection.execute(LOCK, {"tenant": tenant_id}).first()
    if tenant is None:
        raise NotFound(sentence("tenant_missing", tenant=tenant_id))
    if tenant.erased_at:
        raise Conflict(sentence("tenant_erased"))


def models_waiting(connection: Connection, tenant_id: UUID) -> list[str]:
    """The models that it has images to render of."""
    return list(connection.execute(MODELS_WAITING, {"tenant": tenant_id}).scalars())


def _switch(connection: Connection, statement: Any, tenant_id: UUID) -> bool:
    if connection.execute(statement, {"tenant": tenant_id}).rowcount:
        return True
    if connection.execute(EXISTS, {"tenant": tenant_id}).first() is None:
        raise NotFound(sentence("tenant_missing", tenant=tenant_id))
    return False


# How each setting is set, by its name.
SETTINGS = {
    "name": "name = :name",
    "weight": "weight = :weight",
    "limits": "limits = jsonb_strip_nulls(limits || cast(:limits AS jsonb))",
    "tiers": "tiers = cast(:tiers AS tier[])",
    "keep_pictures_days": "keep_pictures_days = :keep_pictures_days",
    "keep_rows_days": "keep_rows_days = :keep_rows_days",
}

# Creates a tenant, unless there is one of that name.
CREATE = text("INSERT INTO tenants (id, name) VALUES (:id, :name) ON CONFLICT (name) DO NOTHING RETURNING id")

# Finds a tenant by its name.
FIND = text("SELECT id FROM tenants WHERE name = :name")

# Suspends a tenant that is not.
SUSPEND = text("UPDATE tenants SET suspended_at = now() WHERE id = :tenant AND suspended_at IS NULL")

# Resumes a tenant that is suspended and was not erased.
RESUME = text("""
    UPDATE tenants SET suspended_at = NULL WHERE id = :tenant AND suspended_at IS NOT NULL AND erased_at IS NULL
""")

# Locks a tenant.
LOCK = text("SELECT name, suspended_at, erased_at FROM tenants WHERE id = :tenant FOR NO KEY UPDATE")

# Marks a tenant as erased; begins again where the bucket had something that no row named.
ERASE = text("""
    UPDATE tenants SET erased_at = coalesce(erased_at, now()),
        erasure_finished_at = CASE WHEN erasure_listing ->> 'unnamed' = '0' THEN erasure_finished_at END
    WHERE id = :tenant
""")

# Finds out whether there is a tenant.
EXISTS = text("SELECT FROM tenants WHERE id = :tenant")

# Finds the models of its lanes with open images.
MODELS_WAITING = text("SELECT DISTINCT model FROM lanes WHERE tenant_id = :tenant AND open > 0 AND NOT closed")
