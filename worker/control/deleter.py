"""Deletes what was deleted: the rows of batches step by step, what retention no longer keeps, and all their bytes.

    rows of deleted batches ──┐
    rows and pictures by age ─┴──► keys in `objects_to_delete` ──► deleted in storage, KEYS in a request

Each step is a transaction of its own, safe in many copies at once. Between two steps it rests as long as the step took,
so requests find Postgres and storage free at least half of the time; and while more than MANY_KEYS wait for storage, no
more rows are deleted. Decides nothing: the statements are in `common.deletion`.
"""

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import transaction
from common.deletion import batches, objects, retention, tombstones
from common.log import log_event
from common.storage import Storage
from worker.availability import Availability

ROUND_S = 10.0  # on one kind of work before the others
KEYS = 250  # in one request to storage
MANY_KEYS = 20_000
LONGEST_REST_S = 2.0
CLEAN_AFTER_LEASES = 4  # lease times after its end; a worker that lost its connection may upload until then


class Deleter:
    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._outage = Availability("storage_away", "storage_back")

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        return self.delete_old_rows, self.delete_batch_rows, self.delete_old_pictures, self.delete_bytes, self.finish

    def delete_batch_rows(self) -> None:
        """Delete the rows of batches that were deleted and have ended."""
        jobs = self._repeat(self._delete_batch_rows)
        if jobs:
            log_event("rows_deleted", jobs=jobs)

    def delete_old_rows(self) -> None:
        """Delete the rows that are older than their tenants keep them."""
        rows = self._repeat(self._delete_old_rows)
        if rows:
            log_event("rows_deleted", old=rows)

    def delete_old_pictures(self) -> None:
        """Give up the pictures that are older than their tenants keep them."""
        self._repeat(self._delete_old_pictures)

    def delete_bytes(self) -> None:
        """Delete the bytes that nothing names any more."""
        keys = self._repeat(self._delete_bytes)
        if keys:
            log_event("bytes_deleted", keys=keys)

    def finish(self) -> None:
        """Record of which deletions nothing is left."""
        with transaction(self._database) as connection:
            tombstones.finish(connection)

    def _delete_batch_rows(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else batches.step(connection)

    def _delete_old_rows(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else retention.delete_rows(connection) or None

    def _delete_old_pictures(self) -> int | None:
        with transaction(self._database) as connection:
            return None if self._has_many_keys(connection) else retention.delete_pictures(connection) or None

    def _has_many_keys(self, connection: Any) -> bool:
        return objects.are_many(connection, MANY_KEYS)

    def _delete_bytes(self) -> int | None:
        """The next keys; how many. None when there is none."""
        with transaction(self._database) as connection:
            due = objects.take_due(connection, CLEAN_AFTER_LEASES * self._settings.lease_s, KEYS)
            if not due:
                return None
            with self._outage.tracked():
                left = self._delete_in_storage(due)
            objects.deleted(connection, [key for key in due if key not in left])
            objects.postpone(connection, sorted(left))
        return len(due) - len(left)

    def _delete_in_storage(self, due: list[str]) -> set[str]:
        """Delete these; the keys of which something is left. Of a prefix with many objects it deletes the next ones."""
        left = set(self._storage.delete_many([key for key in due if not key.endswith("/")]))
        for prefix in (key for key in due if key.endswith("/")):
            found = self._storage.list(prefix)
            left |= {prefix} if self._storage.delete_many(found) or len(found) == 1000 else set()
        if left:
            log_event("bytes_not_deleted", keys=len(left))
        return left

    def _repeat(self, act: Callable[[], int | None]) -> int:
        """Act again and again until it returns None or the round is over; the sum of what it returns."""
        began, done = time.monotonic(), 0
        while time.monotonic() - began < ROUND_S:
            step_began = time.monotonic()
            result = act()
            if result is None:
                break
            done += result
            time.sleep(min(time.monotonic() - step_began, LONGEST_REST_S))
        return done
