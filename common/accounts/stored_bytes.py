"""The bytes that a tenant stores: its images, uploads and datasets. The sweep counts those of limited tenants.

A count reads every image of the tenant. So the next one comes after RESTS times as long as the last one took: a tenant
of some hundred thousand images is counted at every sweep, one of millions every half minute or so.
"""

from uuid import UUID

from sqlalchemy import Connection, text

RESTS = 20


def due(connection: Connection, *, by_default: bool) -> list[UUID]:
    """The tenants to count. `by_default`: those without a limit of their own are limited too."""
    return list(connection.execute(DUE, {"by_default": by_default, "rests": RESTS}).scalars())


def count(connection: Connection, tenant_id: UUID) -> int:
    """What the tenant stores now."""
    return int(connection.execute(COUNT, {"tenant": tenant_id}).scalar_one())


def record(connection: Connection, tenant_id: UUID, stored: int, seconds: float) -> None:
    """Keep a count, and how long it took."""
    connection.execute(RECORD, {"tenant": tenant_id, "bytes": stored, "seconds": seconds})


# Find the limited tenants whose last count has rested.
DUE = text("""
    SELECT id FROM tenants LEFT JOIN stored_bytes ON tenant_id = id
    WHERE erased_at IS NULL
        AND CASE WHEN jsonb_exists(limits, 'stored_bytes') THEN limits ->> 'stored_bytes' IS NOT NULL
                 ELSE :by_default END
        AND coalesce(counted_at + make_interval(secs => :rests * seconds) <= now(), true)
    ORDER BY counted_at NULLS FIRST
""")

# Count the bytes of a tenant. An object that images share counts once: with the image that was rendered or, once that
# is deleted, with the others.
COUNT = text("""
    SELECT coalesce((SELECT sum(images.bytes) FROM images JOIN jobs ON jobs.id = job_id
                     WHERE tenant_id = :tenant AND images.state = 'stored' AND picture_deleted_at IS NULL
                         AND NOT reused), 0)
         + coalesce((SELECT sum(shared.bytes) FROM (
                SELECT DISTINCT images.key, images.bytes FROM images JOIN jobs ON jobs.id = job_id
                WHERE tenant_id = :tenant AND reused AND picture_deleted_at IS NULL) AS shared
            WHERE NOT EXISTS (
                SELECT FROM images
                WHERE images.job_id = cast(split_part(shared.key, '/', 2) AS uuid)
                    AND images.index = cast(split_part(split_part(shared.key, '/', 3), '-', 1) AS int)
                    AND images.key = shared.key AND images.picture_deleted_at IS NULL)), 0)
         + coalesce((SELECT sum(bytes) FROM uploads WHERE tenant_id = :tenant), 0)
         + coalesce((SELECT sum(bytes) FROM datasets WHERE tenant_id = :tenant), 0)
""")

# Record a count.
RECORD = text("""
    INSERT INTO stored_bytes (tenant_id, bytes, seconds) VALUES (:tenant, :bytes, :seconds)
    ON CONFLICT (tenant_id) DO UPDATE SET bytes = excluded.bytes, seconds = excluded.seconds, counted_at = now()
""")
