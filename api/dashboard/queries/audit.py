"""Who did what, for who administers a tenant. The notes are written by `common.accounts.audit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Note:
    """`action` is one of `common.accounts.audit.Action`;

    `subject` an id or a name, or None for what is done to a selection.
    """

    id: UUID
    at: datetime
    key_id: UUID
    key: str  # its name
    via: str
    action: str
    subject: str | None
    detail: dict[str, Any]
    request_id: str | None


def find_notes(connection: Connection, tenant_id: UUID, before: UUID | None, limit: int) -> Sequence[Note]:
    """Newest first: those that are older than the one of `before`."""
    page = {"tenant": tenant_id, "before": before or UUID(int=2**128 - 1), "limit": limit}
    return [Note(**row._mapping) for row in connection.execute(FIND, page)]


FIND = text("""
    SELECT note.id, note.at, note.key_id, api_keys.name AS key, note.via, note.action, note.subject, note.detail,
           note.request_id
    FROM audit AS note JOIN api_keys ON api_keys.id = note.key_id
    WHERE note.tenant_id = :tenant AND note.id < :before ORDER BY note.id DESC LIMIT :limit
""")
