"""Erases tenants: their rows step by step, and when nothing is left, a listing of the bucket as the proof.

The bytes are deleted as all others are (`deleter`). The listing is of the whole bucket, a page at a time: an object
that neither a row nor a key to delete names may have been the tenant's, and is counted. A process that ends leaves no
listing behind: another one begins anew. Decides nothing: the statements are in `common.deletion.erasure`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Engine as Database

from common.db import transaction
from common.deletion import erasure
from common.log import log_event
from common.maintenance.windows import PARTS, Part
from common.queue import reuse
from common.storage import LISTED, Storage
from worker.availability import Availability

SHOWN_KEYS = 10  # of the objects that no row names


@dataclass
class Listing:
    """How far the listing for these tenants has come, and what it has found."""

    tenants: Sequence[UUID]
    parts: list[Part] = field(default_factory=lambda: list(PARTS.values()))
    after: str = ""
    objects: int = 0
    unnamed: list[str] = field(default_factory=list)


class Eraser:
    def __init__(self, database: Database, storage: Storage, outage: Availability) -> None:
        self._database = database
        self._storage = storage
        self._outage = outage
        self._listing: Listing | None = None

    def delete_rows(self) -> int | None:
        """Delete the next rows of an erased tenant; how many. None when none can go now."""
        with transaction(self._database) as connection:
            tenants = erasure.under_way(connection)
        for tenant_id in tenants:
            with transaction(self._database) as connection:
                rows = erasure.step(connection, tenant_id)
            if rows:
                return rows
        return None

    def list_bucket(self) -> int | None:
        """List the next page for the tenants of which nothing is left; how many objects. None when there is none.

        After the last page their erasure is finished, unless something has come meanwhile.
        """
        if self._listing is None:
            with transaction(self._database) as connection:
                emptied = erasure.emptied(connection)
            if not emptied:
                return None
            self._listing = Listing(emptied)
        if not self._listing.parts:
            self._finish(self._listing)
            return 0
        return self._list_page(self._listing, self._listing.parts[0])

    def _list_page(self, listing: Listing, part: Part) -> int:
        with self._outage.tracked():
            page = self._storage.list_objects(part.prefix, listing.after)
        owners = {one.key: owner for one in page if (owner := part.owner(one.key))}
        with transaction(self._database) as connection:
            unnamed = erasure.unnamed(connection, owners)
            unnamed = sorted({*unnamed} - reuse.named(connection, unnamed))  # images may share one
        with self._outage.tracked():  # what was deleted since it was listed is not there any more
            listing.unnamed += [key for key in unnamed if self._storage.exists(key)]
        listing.objects += len(owners)
        listing.after = page[-1].key if page else ""
        if len(page) < LISTED:
            listing.parts.pop(0)
            listing.after = ""
        return len(page)

    def _finish(self, listing: Listing) -> None:
        found = {"objects": listing.objects, "unnamed": len(listing.unnamed), "keys": listing.unnamed[:SHOWN_KEYS]}
        with transaction(self._database) as connection:
            finished = [one for one in listing.tenants if erasure.finish(connection, one, found)]
        self._listing = None
        if finished:
            log_event(
                "tenants_erased",
                tenants=",".join(map(str, finished)),
                objects=listing.objects,
                unnamed=len(listing.unnamed),
            )
