"""Tombstones: what was deleted by its id, when, by which key, and how many of its pictures are left in storage.

A tombstone is for the id that was named. What that contained has none, nor has what retention deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.keys import Caller


class Kind(StrEnum):
    JOB = "job"
    BATCH = "batch"
    IMAGE = "image"
    DATASET = "dataset"
    UPLOAD = "upload"


@dataclass(frozen=True)
class Tombstone:
    """`finished_at`: when neither rows nor bytes were left."""

    id: UUID
    kind: Kind
    deleted_at: datetime
    key_id: UUID
    pictures_left: int
    finished_at: datetime | None


def record(connection: Connection, caller: Caller, kind: Kind, subject: UUID, pictures_left: int = 0) -> None:
    """Record that the caller has deleted this."""
    named = {"id": subject, "kind": kind.value, "tenant": caller.tenant_id, "key": caller.key_id}
    connection.execute(RECORD, named | {"left": pictures_left})


def find(connection: Connection, tenant_id: UUID, ids: Sequence[UUID]) -> Tombstone | None:
    """The tombstone of one of these ids of the tenant, if there is one."""
    row = connection.execute(FIND, {"tenant": tenant_id, "ids": list(ids)}).first()
    return Tombstone(**{**row._mapping, "kind": Kind(row.kind)}) if row else None


def was_deleted(connection: Connection, tenant_id: UUID, subject: UUID, kind: Kind) -> bool:
    """Whether this was deleted before."""
    found = find(connection, tenant_id, [subject])
    return found is not None and found.kind == kind


def finish(connection: Connection) -> list[UUID]:
    """Record of which deletions nothing is left; their ids."""
    return list(connection.execute(FINISH).scalars())


# Insert a tombstone.
RECORD = text("""
    INSERT INTO tombstones (id, kind, tenant_id, key_id, pictures_left) VALUES (:id, :kind, :tenant, :key, :left)
""")

# Find a tombstone of a tenant.
FIND = text("""
    SELECT id, kind, deleted_at, key_id, pictures_left, finished_at FROM tombstones
    WHERE id = ANY(:ids) AND tenant_id = :tenant LIMIT 1
""")

# Finish the deletions of which neither bytes nor rows are left.
FINISH = text("""
    UPDATE tombstones SET finished_at = now(), pictures_left = 0
    WHERE finished_at IS NULL
        AND NOT EXISTS (SELECT FROM objects_to_delete WHERE objects_to_delete.tombstone_id = tombstones.id)
        AND NOT EXISTS (SELECT FROM batches WHERE batches.id = tombstones.id)
    RETURNING id
""")
