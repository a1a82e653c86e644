"""Idempotency keys: which job or batch a key of a tenant made, for 24 hours."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.errors import IdempotencyMismatch

KEY_HOURS = 24


@dataclass(frozen=True)
class IdempotencyKey:
    """An Idempotency-Key, on the route it was used on, with the fingerprint of the body it came with."""

    route: str
    key: str
    fingerprint: str


def claim_key(connection: Connection, tenant_id: UUID, once: IdempotencyKey, made_id: UUID) -> UUID | None:
    """Take an Idempotency-Key for a job or batch that is about to be made: None, or the one that took it before.

    Of several at once, the first to commit has it and the others wait for that. Raises IdempotencyMismatch when the
    key came with another body in the last 24 hours.
    """
    parameters = {"tenant": tenant_id, "route": once.route, "key": once.key, "hours": KEY_HOURS}
    taken = connection.execute(TAKE_KEY, parameters | {"fingerprint": once.fingerprint, "made": made_id}).first()
    return None if taken else find_result(connection, tenant_id, once)


def find_result(connection: Connection, tenant_id: UUID, once: IdempotencyKey) -> UUID | None:
    """The job or batch that an Idempotency-Key made in the last 24 hours. Raises IdempotencyMismatch as above."""
    parameters = {"tenant": tenant_id, "route": once.route, "key": once.key, "hours": KEY_HOURS}
    earlier = connection.execute(READ_KEY, parameters).first()
    if earlier is None:
        return None
    if earlier.fingerprint != once.fingerprint:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request in the last 24 hours; use a new key."
        )
    return UUID(str(earlier.made_id))


def delete_expired_keys(connection: Connection) -> int:
    """Forget Idempotency-Keys older than 24 hours; how many."""
    return connection.execute(DELETE_EXPIRED_KEYS, {"hours": KEY_HOURS}).rowcount


TAKE_KEY = text("""
    INSERT INTO idempotency_keys AS old (tenant_id, route, key, fingerprint, made_id)
    VALUES (:tenant, :route, :key, :fingerprint, :made)
    ON CONFLICT (tenant_id, route, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, made_id = excluded.made_id, created_at = now()
        WHERE old.created_at < now() - make_interval(hours => :hours)
    RETURNING made_id
""")


READ_KEY = text("""
    SELECT fingerprint, made_id FROM idempotency_keys
    WHERE tenant_id = :tenant AND route = :route AND key = :key
        AND created_at >= now() - make_interval(hours => :hours)
""")


DELETE_EXPIRED_KEYS = text("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(hours => :hours)")
