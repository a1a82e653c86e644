"""The scrub: compares rows with objects, both ways, and repairs.

    missing    a row without its object       its owner sees it: the image has an error, the dataset fails
    damaged    an object of other bytes       likewise
    orphaned   an object without a row        is deleted

By size, or by `digests`, for which all bytes are read. An image whose object is back loses its error. Young objects are
left alone, for workers store an image before they publish it; so is what has another name than ours, and the mark that
says whose bucket it is. Safe beside a farm at work, and may stop at any time: the cursor says how far it came.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row

from common import uploads
from common.datasets import lifecycle as datasets
from common.datasets.layout import SUMS
from common.db import transaction
from common.enums import DatasetState, ImageState
from common.errors import Invalid, NotFound
from common.maintenance import sentence
from common.maintenance.windows import PARTS, Window, windows
from common.queue import orphans, reuse
from common.storage import Storage, StoredObject, dataset_key, upload_key

YOUNG_S = 24 * 3600
LOST, DAMAGED = "picture_lost", "picture_damaged"
DATASET_LOST = "dataset_lost"


@dataclass
class Cursor:
    """How far a scrub has come, and what it has found so far."""

    part: str = next(iter(PARTS))
    after: str = ""  # the last id that was compared
    objects: int = 0  # that were compared
    rows: int = 0
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("missing", "damaged", "orphaned", "back"), 0))
    repaired: int = 0

    @classmethod
    def load(cls, path: Path) -> "Cursor":
        """The cursor in a file; a new one if there is no such file. Raises Invalid for another file."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise Invalid(sentence("cursor_unreadable", path=path)) from error

    def save(self, path: Path) -> None:
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)


@dataclass(frozen=True)
class Finding:
    """What differs. `kind`: missing, damaged, orphaned, or back: an image with an error whose object is there again."""

    kind: str
    key: str
    id: str | None = None  # of the image, upload or dataset
    is_repaired: bool = False


@dataclass(frozen=True)
class Options:
    digests: bool = False
    repair: bool = False
    rate: float | None = None  # objects a second; None: as fast as it goes
    young_s: float = YOUNG_S


class Scrub:
    def __init__(
        self,
        database: Engine,
        storage: Storage,
        options: Options,
        cursor: Cursor,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cursor = cursor
        self._database = database
        self._storage = storage
        self._options = options
        self._sleep = sleep
        self._compare = {"images": self._images, "uploads": self._uploads, "datasets": self._datasets}

    def run(self) -> Iterator[list[Finding]]:
        """What is found, window by window. After each the cursor is that of the next one."""
        names = list(PARTS)
        for name in names[names.index(self.cursor.part) :]:
            for window in windows(self._storage, self._database, PARTS[name], self.cursor.after):
                findings = list(self._compare[name](window))
                self._count(window, findings)
                self.cursor.part, self.cursor.after = name, window.until or ""
                if window.until is None and name != names[-1]:
                    self.cursor.part = names[names.index(name) + 1]
                yield findings

    def _count(self, window: Window, findings: list[Finding]) -> None:
        objects = sum(map(len, window.objects.values()))
        self.cursor.objects += objects
        self.cursor.rows += len(window.rows)
        for finding in findings:
            self.cursor.found[finding.kind] += 1
            self.cursor.repaired += finding.is_repaired
        if not self._options.digests:
            self._rest(objects)

    def _rest(self, objects: int) -> None:
        if self._options.rate:
            self._sleep(objects / self._options.rate)

    # Images

    def _images(self, window: Window) -> Iterator[Finding]:
        objects = {one.key: one for some in window.objects.values() for one in some}
        leases = [str(row.lease_id) for row in window.rows if row.state != ImageState.STORED]
        for row in window.rows:
            if row.state == ImageState.STORED:
                yield from self._image(row, objects.pop(row.key, None))
        left = [one for one in objects.values() if not any(lease in one.key for lease in leases)]
        with transaction(self._database) as connection:
            shared = reuse.named(connection, [one.key for one in left])
        for one in left:
            if one.key not in shared:
                yield from self._orphan(one)

    def _image(self, row: Row[Any], one: StoredObject | None) -> Iterator[Finding]:
        if one is None and not self._storage.exists(row.key):  # it may be the object of another job's image
            yield self._gone(row, "missing", LOST, sentence("picture_lost"))
        elif not self._is_intact(one, row):
            yield self._gone(row, "damaged", DAMAGED, sentence("picture_damaged"))
        elif row.error_code == LOST or (row.error_code == DAMAGED and self._options.digests):
            with transaction(self._database) as connection:
                if self._options.repair:
                    orphans.mark_present(connection, row.id)
            yield Finding("back", row.key, str(row.id), self._options.repair)

    def _gone(self, row: Row[Any], kind: str, code: str, message: str) -> Finding:
        is_marked = False
        if self._options.repair:
            with transaction(self._database) as connection:
                is_marked = orphans.mark_gone(connection, row.id, row.key, code, message)
        return Finding(kind, row.key, str(row.id), is_marked)

    # Uploads

    def _uploads(self, window: Window) -> Iterator[Finding]:
        rows = {upload_key(row.id, row.format): row for row in window.rows}
        objects = {one.key: one for some in window.objects.values() for one in some}
        for key, row in rows.items():
            one = objects.pop(key, None)
            if one is None:
                if row.age_s > self._options.young_s and not self._storage.exists(key):
                    yield Finding("missing", key, str(row.id), self._forget_upload(row))
            elif not self._is_intact(one, row):
                yield Finding("damaged", key, str(row.id), self._forget_upload(row))
        for one in objects.values():
            yield from self._orphan(one)

    def _forget_upload(self, row: Row[Any]) -> bool:
        """One that a batch was made of stays: its jobs exist, or it fails with an error of its own."""
        if not self._options.repair:
            return False
        with transaction(self._database) as connection:
            return uploads.forget_unused(connection, row.id)

    # Datasets

    def _datasets(self, window: Window) -> Iterator[Finding]:
        rows = {str(row.id): row for row in window.rows}
        for owner, objects in window.objects.items():
            if owner not in rows:
                for one in objects:
                    yield from self._orphan(one)
        for owner, row in rows.items():
            if row.state == DatasetState.READY:
                yield from self._dataset(row, {one.key for one in window.objects.get(owner, ())})

    def _dataset(self, row: Row[Any], keys: set[str]) -> Iterator[Finding]:
        findings = [Finding(kind, key, str(row.id), self._options.repair) for kind, key in self._files(row, keys)]
        if findings and self._options.repair:
            with transaction(self._database) as connection:
                datasets.lose(connection, row.id, DATASET_LOST, sentence("dataset_lost"))
        yield from findings

    def _files(self, row: Row[Any], keys: set[str]) -> Iterator[tuple[str, str]]:
        """The files of a ready dataset that are missing or damaged. Its checksums name all others."""
        sums = dataset_key(row.id, SUMS)
        try:
            if self._storage.digest(sums) != row.digest:
                yield "damaged", sums
                return
            for line in self._storage.get(sums).decode().splitlines():
                digest, path = line.split("  ", 1)
                key = dataset_key(row.id, path)
                if key not in keys and not self._storage.exists(key):
                    yield "missing", key
                elif self._options.digests and self._digest(key) != digest:
                    yield "damaged", key
        except NotFound:
            yield "missing", sums

    # All of them

    def _orphan(self, one: StoredObject) -> Iterator[Finding]:
        if (datetime.now(UTC) - one.stored_at).total_seconds() < self._options.young_s:
            return
        if self._options.repair:
            self._storage.delete([one.key])
        yield Finding("orphaned", one.key, is_repaired=self._options.repair)

    def _is_intact(self, one: StoredObject | None, row: Row[Any]) -> bool:
        """By size, if the object is listed, and by digest, if that is wanted."""
        if one is not None and one.bytes != row.bytes:
            return False
        return not self._options.digests or self._digest(one.key if one else row.key) == row.sha256

    def _digest(self, key: str) -> str | None:
        self._rest(1)
        try:
            return self._storage.digest(key)
        except NotFound:
            return None


def is_clean(cursor: Cursor) -> bool:
    """Whether all that differed was repaired."""
    return cursor.repaired == sum(cursor.found.values())


def described(finding: Finding) -> dict[str, Any]:
    return {name: value for name, value in asdict(finding).items() if value is not None}
