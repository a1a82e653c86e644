"""Pictures: the stored images of a tenant, newest first, and those that belong side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.queue.search import CANDIDATES, THE_HITS, Search, find


@dataclass(frozen=True)
class Picture:
    """A stored image, and what it was drawn from. Its bytes are at /v1/images/ID/content and /thumbnail."""

    id: UUID
    job_id: UUID
    batch_id: UUID | None
    index: int
    seed: int
    recipe: Mapping[str, Any]  # prompt, negative_prompt, model, width, height, steps, scheduler, guidance, format, …
    bytes: int
    finished_at: datetime


@dataclass(frozen=True)
class GallerySearch:
    """Which pictures. `before`: what the page before gave for `next`."""

    limit: int
    before: UUID | None = None
    model: str | None = None
    batch: UUID | None = None
    q: str | None = None


@dataclass(frozen=True)
class Pictures:
    """A page, and where the next one begins: None on the last.

    With a `q`, a page has whole jobs, by their age; it may have few pictures, even none, though there is a next one: so
    far was looked.
    """

    items: Sequence[Picture]
    next: UUID | None


def find_pictures(connection: Connection, tenant_id: UUID, search: GallerySearch) -> Pictures:
    if search.q:
        return _find_by_words(connection, tenant_id, search)
    chosen = {"tenant": tenant_id, **{name: value for name, value in vars(search).items() if value}}
    filters = "".join(LANE_FILTERS[name] for name in LANE_FILTERS if name in chosen)
    statement = text(NEWEST.format(lanes=filters, before=BEFORE if search.before else ""))
    rows = connection.execute(statement, chosen | {"limit": search.limit + 1}).all()
    page = [picture_of(row) for row in rows[: search.limit]]
    return Pictures(page, page[-1].id if len(rows) > search.limit else None)


def find_same_prompt_and_seed(
    connection: Connection, tenant_id: UUID, image_id: UUID, limit: int = 24
) -> Sequence[Picture]:
    """What to compare a picture with, itself first: the pictures of the same prompt from the same seed, the newest
    first, whatever else their recipes say. Empty when the tenant has no such picture."""
    row = connection.execute(PICK, {"tenant": tenant_id, "image": image_id}).first()
    if row is None:
        return []
    picture = picture_of(row)
    question = {
        "tenant": tenant_id,
        "q": picture.recipe["prompt"],
        "seed": str(picture.seed),  # it may be larger than any integer of Postgres
        "image": image_id,
        "candidates": CANDIDATES,
        "limit": limit - 1,
    }
    return [picture, *map(picture_of, connection.execute(COMPANIONS, question))]


def _find_by_words(connection: Connection, tenant_id: UUID, search: GallerySearch) -> Pictures:
    wanted = Search(
        limit=search.limit,
        before=search.before,
        model=search.model,
        batch=search.batch,
        q=search.q,
        has_pictures=True,
    )
    found = find(connection, tenant_id, wanted)
    rows = connection.execute(OF_JOBS, {"jobs": list(found.ids)})
    pictures = list[Picture]()
    for job_id, group in groupby(map(picture_of, rows), key=lambda picture: picture.job_id):
        pictures += group
        if len(pictures) >= search.limit:
            return Pictures(pictures, job_id)
    return Pictures(pictures, found.resume)


def picture_of(row: Row[Any]) -> Picture:
    index = row._mapping["index"]  # Row.index is a method of tuples
    return Picture(
        row.id, row.job_id, row.batch_id, index, row.recipe["seeds"][index], row.recipe, row.bytes, row.finished_at
    )


LANE_FILTERS = {"model": " AND model = :model", "batch": " AND batch_id = :batch"}

BEFORE = """
    AND (images.finished_at, images.id) < ((SELECT finished_at FROM images WHERE id = :before), :before)"""

PICTURE = "images.id, images.job_id, jobs.batch_id, images.index, jobs.recipe, images.bytes, images.finished_at"

# Of each lane the newest, of these the newest: an index holds what each lane has stored, by time.
NEWEST = f"""
    WITH mine AS MATERIALIZED (SELECT id FROM lanes WHERE tenant_id = :tenant AND stored > 0{{lanes}}),
    images AS MATERIALIZED (
        SELECT image.* FROM mine CROSS JOIN LATERAL (
            SELECT id, job_id, index, bytes, finished_at FROM images
            WHERE images.lane_id = mine.id AND images.state = 'stored' {{before}}
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        ORDER BY finished_at DESC, id DESC LIMIT :limit)
    SELECT {PICTURE} FROM images JOIN jobs ON jobs.id = images.job_id
    ORDER BY images.finished_at DESC, images.id DESC
"""

OF_JOBS = text(f"""
    SELECT {PICTURE} FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE jobs.id = ANY(:jobs) AND images.state = 'stored'
    ORDER BY array_position(cast(:jobs AS uuid[]), jobs.id), images.index
""")

PICK = text(f"""
    SELECT {PICTURE} FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE images.id = :image AND images.state = 'stored' AND jobs.tenant_id = :tenant
""")

COMPANIONS = text(f"""
    WITH hit AS MATERIALIZED ({THE_HITS})
    SELECT {PICTURE}
    FROM hit AS jobs JOIN images ON images.job_id = jobs.id AND images.state = 'stored'
    WHERE jobs.tenant_id = :tenant AND jobs.recipe ->> 'prompt' = :q
        AND jobs.recipe -> 'seeds' ->> images.index = :seed AND images.id <> :image
    ORDER BY images.finished_at DESC, images.id DESC LIMIT :limit
""")
