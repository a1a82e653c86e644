"""Idempotency keys: which job, batch or dataset a request with a key has made, for 24 hours."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts import sentence
from common.db import new_id
from common.errors import IdempotencyMismatch

KEY_HOURS = 24


@dataclass(frozen=True)
class IdempotencyKey:
    """An Idempotency-Key with the route that it came to and the fingerprint of the request's body."""

    route: str
    key: str
    fingerprint: str


def submit_idempotent(
    connection: Connection, tenant_id: UUID, key: IdempotencyKey | None, submit: Callable[[UUID], object]
) -> tuple[UUID, bool]:
    """Call `submit` with a new id, unless the key has made something before; the id, and whether it is new.

    Raises IdempotencyMismatch when the key came with another body in the last 24 hours.
    """
    made_id = new_id()
    earlier = claim_key(connection, tenant_id, key, made_id) if key else None
    if earlier is None:
        submit(made_id)
    return earlier or made_id, earlier is None


def claim_key(connection: Connection, tenant_id: UUID, key: IdempotencyKey, made_id: UUID) -> UUID | None:
    """Record that a key makes `made_id`: None, or the id that it has made before.

    Of several transactions the first to commit wins; the others wait for it. Raises IdempotencyMismatch when the key
    came with another body in the last 24 hours.
    """
    parameters = {"tenant": tenant_id, "route": key.route, "key": key.key, "hours": KEY_HOURS}
    taken = connection.execute(TAKE_KEY, parameters | {"fingerprint": key.fingerprint, "made": made_id}).first()
    return None if taken else find_result(connection, tenant_id, key)


def find_result(connection: Connection, tenant_id: UUID, key: IdempotencyKey) -> UUID | None:
    """The id that a key has made in the last 24 hours. Raises IdempotencyMismatch as above."""
    parameters = {"tenant": tenant_id, "route": key.route, "key": key.key, "hours": KEY_HOURS}
    earlier = connection.execute(READ_KEY, parameters).first()
    if earlier is None:
        return None
    if earlier.fingerprint != key.fingerprint:
        raise IdempotencyMismatch(sentence("key_reused", hours=KEY_HOURS))
    return UUID(str(earlier.made_id))


# Inserts a key, or replaces one that is older than 24 hours.
TAKE_KEY = text("""
    INSERT INTO idempotency_keys AS old (tenant_id, route, key, fingerprint, made_id)
    VALUES (:tenant, :route, :key, :fingerprint, :made)
    ON CONFLICT (tenant_id, route, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, made_id = excluded.made_id, created_at = now()
        WHERE old.created_at < now() - make_interval(hours => :hours)
    RETURNING made_id
""")

# Reads a key of the last 24 hours.
READ_KEY = text("""
    SELECT fingerprint, made_id FROM idempotency_keys
    WHERE tenant_id = :tenant AND route = :route AND key = :key
        AND created_at >= now() - make_interval(hours => :hours)
""")
