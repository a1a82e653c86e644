"""The lines of a batch's file that its check skipped, and why. Written once, when they are checked."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text


def add(connection: Connection, batch_id: UUID, reasons: Mapping[int, str]) -> None:
    """Record why each of these lines is skipped."""
    if reasons:
        parameters = {"batch": batch_id, "lines": list(reasons), "reasons": list(reasons.values())}
        connection.execute(INSERT, parameters)


def lines(connection: Connection, batch_id: UUID) -> set[int]:
    """The numbers of all skipped lines: a batch with many is refused."""
    return set(connection.execute(LINES, {"batch": batch_id}).scalars())


def head(connection: Connection, batch_id: UUID, limit: int) -> list[dict[str, Any]]:
    """The first skipped lines: `line` and `reason` of each."""
    return [dict(row) for row in connection.execute(HEAD, {"batch": batch_id, "limit": limit}).mappings()]


# Insert the skipped lines of a chunk.
INSERT = text("""
    INSERT INTO skipped_lines (batch_id, line, reason)
    SELECT :batch, line, reason
    FROM unnest(cast(:lines AS bigint[]), cast(:reasons AS text[])) AS skipped(line, reason)
""")

# Read the numbers of the skipped lines.
LINES = text("SELECT line FROM skipped_lines WHERE batch_id = :batch")

# Read the first skipped lines, and why they are.
HEAD = text("SELECT line, reason FROM skipped_lines WHERE batch_id = :batch ORDER BY line LIMIT :limit")
