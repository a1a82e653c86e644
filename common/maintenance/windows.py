"""Rows and objects side by side: both are read in the order of the id in their keys, a window at a time.

    images/{job}/…   uploads/{upload}.…   datasets/{dataset}/…

One request lists a thousand objects, one query reads the rows of the same ids. Memory holds a window, however large the
bucket. Objects are listed before the rows are read: what is stored meanwhile is in neither, or in the rows alone.
Compares nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row, TextClause, text

from common.db import transaction
from common.storage import LISTED, Storage, StoredObject

ROWS = 5000  # more than any owner has
ID_LENGTH = 36
FIRST = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Part:
    """A prefix of the bucket, and the rows that name what is below it: `owner` is the id in the key."""

    name: str
    rows: TextClause

    @property
    def prefix(self) -> str:
        return f"{self.name}/"

    def owner(self, key: str) -> str | None:
        """The id in a key; None for a key that is none of ours."""
        found = key[len(self.prefix) :][:ID_LENGTH]
        try:
            return found if str(UUID(found)) == found else None
        except ValueError:
            return None


@dataclass(frozen=True)
class Window:
    """The objects, by owner, and the rows of all owners after the window before and up to `until` (None: the end)."""

    until: str | None
    objects: dict[str, list[StoredObject]]
    rows: list[Row[Any]]


def windows(storage: Storage, database: Engine, part: Part, after: str) -> Iterator[Window]:
    """From the owner after this one on (empty: from the first one on)."""
    last: str | None = after
    while last is not None:
        objects, objects_end = _complete(lambda key: part.owner(key.key), *_list(storage, part, last))
        with transaction(database) as connection:
            rows, rows_end = _complete(lambda row: str(row.owner), *_read(connection, part, last))
        until = min((end for end in (objects_end, rows_end) if end is not None), default=None)
        rows = [row for row in rows if until is None or str(row.owner) <= until]
        yield Window(until, _by_owner(part, objects, until), rows)
        last = until


def _list(storage: Storage, part: Part, after: str) -> tuple[list[StoredObject], bool]:
    """The next objects, of more than one owner if there are any; whether there may be more."""
    found: list[StoredObject] = []
    start = f"{part.prefix}{after}0" if after else part.prefix  # behind `/` and `.`, which follow an id
    while True:
        page = storage.list_objects(part.prefix, start)
        found += page
        if len(page) < LISTED:
            return found, False
        if {part.owner(one.key) for one in found} - {None, part.owner(page[-1].key)}:
            return found, True
        start = page[-1].key


def _read(connection: Connection, part: Part, after: str) -> tuple[list[Row[Any]], bool]:
    rows = list(connection.execute(part.rows, {"after": after or FIRST, "limit": ROWS}))
    return rows, len(rows) == ROWS


def _complete(owner: Callable[[Any], str | None], found: Sequence[Any], has_more: bool) -> tuple[list[Any], str | None]:
    """What is found without the last owner, of which there may be more; and the last owner that is complete."""
    if not has_more:
        return list(found), None
    last = owner(found[-1])
    complete = [one for one in found if owner(one) != last]
    return complete, max(filter(None, map(owner, complete)))


def _by_owner(part: Part, objects: Sequence[StoredObject], until: str | None) -> dict[str, list[StoredObject]]:
    found: dict[str, list[StoredObject]] = {}
    for one in objects:
        owner = part.owner(one.key)
        if owner is not None and (until is None or owner <= until):
            found.setdefault(owner, []).append(one)
    return found


# Images that are stored, or that a lease may store now, by job.
IMAGES = text("""
    SELECT job_id AS owner, id, state, lease_id, key, sha256, bytes, error_code FROM images
    WHERE job_id > cast(:after AS uuid)
        AND (state = 'stored' AND picture_deleted_at IS NULL OR state IN ('queued', 'running') AND lease_id IS NOT NULL)
    ORDER BY job_id, index LIMIT :limit
""")

# Uploads. One is recorded before it is stored.
UPLOADS = text("""
    SELECT id AS owner, id, format, sha256, bytes, extract(epoch FROM now() - created_at)::float AS age_s FROM uploads
    WHERE id > cast(:after AS uuid) ORDER BY id LIMIT :limit
""")

# Datasets.
DATASETS = text("""
    SELECT id AS owner, id, state, digest FROM datasets WHERE id > cast(:after AS uuid) ORDER BY id LIMIT :limit
""")

PARTS = {part.name: part for part in (Part("images", IMAGES), Part("uploads", UPLOADS), Part("datasets", DATASETS))}
