"""Deletes what was deleted: the rows of batches and of erased tenants, what is kept no longer, and all their bytes.

    rows of deleted batches ──┐
    rows of erased tenants ───┤
    rows and pictures by age ─┴──► keys in `objects_to_delete` ──► deleted in storage, many in a request

Each step is a transaction of its own, safe in many copies at once. After each it rests, so that requests find Postgres
and storage free for some of the time; and while more than MANY_KEYS wait for storage, no more rows are deleted. A
request to storage has as many keys as that deletes in REQUEST_S. Decides nothing: the statements are in
`common.deletion`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import transaction
from common.deletion import batches, objects, retention, tombstones
from common.errors import Unavailable
from common.log import log_event
from common.queue import reuse
from common.storage import Storage
from worker.availability import Availability
from worker.control.eraser import Eraser

ROWS_S, BYTES_S, LISTING_S = 5.0, 30.0, 5.0  # on one kind of work before the others
ROWS_REST, BYTES_REST = 1.0, 0.25  # after a step, as a share of the time that it took
LONGEST_REST_S = 2.0
FIRST_KEYS, LEAST_KEYS, MOST_KEYS = 100, 5, 1000  # in one request to storage
REQUEST_S = 2.0
PREFIXES_S = 5.0  # on prefixes in one transaction
MANY_KEYS = 20_000
CLEAN_AFTER_LEASES = 4  # lease times after its end; a worker that lost its connection may upload until then


@dataclass
class Work:
    """The keys that storage refused to delete, the prefixes that have more objects, and how many objects were seen."""

    refused: set[str]
    unfinished: set[str]
    objects: int


class Deleter:
    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._outage = Availability("storage_away", "storage_back")
        self._eraser = Eraser(database, storage, self._outage)
        self._keys = FIRST_KEYS

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.delete_old_rows,
            self.delete_rows_of_erased,
            self.delete_batch_rows,
            self.delete_old_pictures,
            self.delete_bytes,
            self.finish,
            self.list_for_erased,
        )

    def delete_batch_rows(self) -> None:
        """Delete the rows of batches that were deleted and have ended."""
        jobs = self._repeat(self._delete_batch_rows, ROWS_S, ROWS_REST)
        if jobs:
            log_event("rows_deleted", jobs=jobs)

    def delete_old_rows(self) -> None:
        """Delete the rows that are older than their tenants keep them."""
        rows = self._repeat(self._delete_old_rows, ROWS_S, ROWS_REST)
        if rows:
            log_event("rows_deleted", old=rows)

    def delete_rows_of_erased(self) -> None:
        """Delete the rows of tenants that were erased."""
        rows = self._repeat(self._delete_rows_of_erased, ROWS_S, ROWS_REST)
        if rows:
            log_event("tenant_emptied", rows=rows)

    def list_for_erased(self) -> None:
        """List the bucket for the tenants of which nothing is left, and finish their erasure."""
        self._repeat(self._eraser.list_bucket, LISTING_S, BYTES_REST)

    def delete_old_pictures(self) -> None:
        """Give up the pictures that are older than their tenants keep them."""
        self._repeat(self._delete_old_pictures, ROWS_S, ROWS_REST)

    def delete_bytes(self) -> None:
        """Delete the bytes that nothing names any more."""
        keys = self._repeat(self._delete_bytes, BYTES_S, BYTES_REST)
        if keys:
            log_event("bytes_deleted", keys=keys)

    def finish(self) -> None:
        """Record of which deletions nothing is left."""
        with transaction(self._database) as connection:
            tombstones.finish(connection)

    def _delete_batch_rows(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else batches.step(connection)

    def _delete_rows_of_erased(self) -> int | None:
        with transaction(self._database) as connection:
            has_many_keys = self._has_many_keys(connection)
        return None if has_many_keys else self._eraser.delete_rows()

    def _delete_old_rows(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else retention.delete_rows(connection) or None

    def _delete_old_pictures(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else retention.delete_pictures(connection) or None

    def _has_many_keys(self, connection: Connection) -> bool:
        return objects.are_many(connection, MANY_KEYS)

    def _delete_bytes(self) -> int | None:
        """The next keys; how many objects. None when there is none. What another image names stays in storage."""
        with transaction(self._database) as connection:
            due = objects.take_due(connection, CLEAN_AFTER_LEASES * self._settings.lease_s, self._keys)
            if not due:
                return None
            shared = reuse.named(connection, due)
            with self._outage.tracked():
                work = self._delete_in_storage([key for key in due if key not in shared])
            objects.deleted(connection, [key for key in due if key not in work.refused | work.unfinished])
            objects.postpone(connection, sorted(work.refused))
        if work.refused:
            log_event("bytes_not_deleted", keys=len(work.refused))
        return work.objects

    def _delete_in_storage(self, due: list[str]) -> Work:
        """Delete these, of each prefix the next objects; within a few seconds, for a transaction is open."""
        keys, until = [key for key in due if not key.endswith("/")], time.monotonic() + PREFIXES_S
        work = Work(set(self._delete(keys)), set(), len(keys))
        for prefix in (key for key in due if key.endswith("/")):
            if time.monotonic() > until:
                work.unfinished.add(prefix)
                continue
            most = self._keys
            found = [one.key for one in self._storage.list_objects(prefix, limit=most)]
            if self._delete(found):
                work.refused.add(prefix)
            elif len(found) == most:
                work.unfinished.add(prefix)
            work.objects += len(found)
        return work

    def _delete(self, keys: list[str]) -> list[str]:
        """Delete these objects; those that storage refused to delete."""
        if not keys:
            return []
        with self._adapted(len(keys)):
            return self._storage.delete_many(keys)

    @contextmanager
    def _adapted(self, keys: int) -> Iterator[None]:
        """Adapt the number of keys in a request to the time that this one takes."""
        began = time.monotonic()
        try:
            yield
        except Unavailable:
            self._keys = max(self._keys // 2, LEAST_KEYS)
            raise
        wanted = int(keys * REQUEST_S / max(time.monotonic() - began, 0.001))
        self._keys = max(LEAST_KEYS, min(wanted, 2 * self._keys, MOST_KEYS))

    def _repeat(self, act: Callable[[], int | None], seconds: float, rest: float) -> int:
        """Act again and again until it returns None or the time is over; the sum of what it returns."""
        began, done = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            step_began = time.monotonic()
            result = act()
            if result is None:
                break
            done += result
            time.sleep(min(rest * (time.monotonic() - step_began), LONGEST_REST_S))
        return done
