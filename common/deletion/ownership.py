"""Which rows are a tenant's: by table, those that its erasure deletes, and those that it keeps and why.

A test compares both with the schema, so that no table is forgotten. Reads only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.audit import Action
from common.deletion import sentence
from common.sentences import Sentence

MOST_COUNTED = 10_000  # rows of one table; more are as many


@dataclass(frozen=True)
class Kept:
    """Rows of a table that outlive their tenant. `rows`: what follows FROM."""

    rows: str
    reason: Sentence


IS_ARCHIVE = "lanes.compatibility = 'archive of ' || lanes.model"  # see `common.queue.lanes.archive`

# What follows FROM. A key to delete that names no tenant may be anybody's: releases before `r0022` recorded such.
ERASED: Mapping[str, str] = {
    "jobs": "jobs WHERE tenant_id = :tenant",
    "images": """(SELECT id FROM jobs WHERE tenant_id = :tenant ORDER BY id LIMIT :most) AS job
        JOIN images ON images.job_id = job.id""",
    "batches": "batches WHERE tenant_id = :tenant",
    "skipped_lines": """(SELECT id FROM batches WHERE tenant_id = :tenant ORDER BY id LIMIT :most) AS batch
        JOIN skipped_lines ON skipped_lines.batch_id = batch.id""",
    "datasets": "datasets WHERE tenant_id = :tenant",
    "uploads": "uploads WHERE tenant_id = :tenant",
    "lanes": f"lanes WHERE tenant_id = :tenant AND NOT {IS_ARCHIVE}",
    "lane_changes": "lane_changes JOIN lanes ON lanes.id = lane_id WHERE tenant_id = :tenant",
    "objects_to_delete": """objects_to_delete LEFT JOIN tombstones ON tombstones.id = tombstone_id
        WHERE tombstone_id IS NULL OR tombstone_id = :tenant OR tombstones.tenant_id = :tenant""",
    "idempotency_keys": "idempotency_keys WHERE tenant_id = :tenant",
    "licence_acceptances": "licence_acceptances WHERE tenant_id = :tenant",
    "ended_sessions": """ended_sessions
        WHERE key_id = ANY(ARRAY(SELECT api_keys.id FROM api_keys WHERE api_keys.tenant_id = :tenant))""",
    "image_days": "image_days WHERE tenant_id = :tenant",
    "stored_bytes": "stored_bytes WHERE tenant_id = :tenant",
    "audit": f"""audit WHERE tenant_id = :tenant AND acted_on_id IS NULL
        OR acted_on_id = :tenant AND action <> '{Action.ERASE_TENANT}'""",
    "usage_entries": "usage_entries WHERE tenant_id = :tenant",
    "api_keys": "api_keys WHERE tenant_id = :tenant AND name <> id::text",
}

KEPT: Mapping[str, Kept] = {
    "tenants": Kept("tenants WHERE id = :tenant", sentence("kept_tenant")),
    "api_keys": Kept("api_keys WHERE tenant_id = :tenant AND name = id::text", sentence("kept_keys")),
    "usage_days": Kept("usage_days WHERE tenant_id = :tenant", sentence("kept_usage")),
    "tombstones": Kept("tombstones WHERE tenant_id = :tenant", sentence("kept_tombstones")),
    "lanes": Kept(f"lanes WHERE tenant_id = :tenant AND {IS_ARCHIVE}", sentence("kept_lanes")),
    "audit": Kept(
        f"""audit WHERE tenant_id = :tenant AND acted_on_id IS NOT NULL
            OR acted_on_id = :tenant AND action = '{Action.ERASE_TENANT}'""",
        sentence("kept_audit"),
    ),
}


def count_left(connection: Connection, tenant_id: UUID) -> dict[str, int]:
    """How many rows of each table of ERASED a tenant has, MOST_COUNTED at most. Of images, those of as many jobs."""
    return dict(connection.execute(COUNT_LEFT, {"tenant": tenant_id, "most": MOST_COUNTED}).one()._mapping)


def count_kept(connection: Connection, tenant_id: UUID) -> dict[str, int]:
    """The same of KEPT."""
    return dict(connection.execute(COUNT_KEPT, {"tenant": tenant_id, "most": MOST_COUNTED}).one()._mapping)


def has_nothing(connection: Connection, tenant_id: UUID) -> bool:
    """Whether a tenant has no row of ERASED."""
    return not connection.execute(HAS_SOMETHING, {"tenant": tenant_id, "most": 1}).scalar_one()


def _counts(rows: Mapping[str, str]) -> str:
    count = "(SELECT count(*) FROM (SELECT FROM {rows} LIMIT :most) AS found) AS {table}"
    return "SELECT " + ", ".join(count.format(rows=of, table=table) for table, of in rows.items())


# Counts what is to be deleted, by table.
COUNT_LEFT = text(_counts(ERASED))

# Counts what is kept, by table.
COUNT_KEPT = text(_counts({table: kept.rows for table, kept in KEPT.items()}))

# Whether anything is to be deleted. What has no row of jobs has none of images.
HAS_SOMETHING = text("SELECT " + " OR ".join(f"EXISTS (SELECT FROM {rows})" for rows in ERASED.values()))
