"""Which jobs of a tenant: by state, batch, time, model, tier, and words in their prompts. Reads only.

However many jobs there are, a question looks at no more than a window of them. What an index knows (states, batches,
times) narrows the window; all else is looked for inside it, newest first, and the answer says where to look on. Words
that many prompts have are found there at once; rare ones are found by the index of characters, however old they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from common.db import id_of_time
from common.enums import JobState, Tier

WINDOW = 50_000  # jobs that one question looks at
FIRST_WINDOW = 5_000  # of them are enough to find words that are in every hundredth prompt
CANDIDATES = 5_000  # jobs that have all characters of the words, in whatever order
SKEW = timedelta(minutes=5)  # between the clock that ids are made by and the database's


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs of a tenant: those for which all of this holds that is not None."""

    state: JobState | None = None
    model: str | None = None
    batch: UUID | None = None
    tier: Tier | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None

    def chosen(self) -> dict[str, Any]:
        """What is not None, by the names that FILTERS and the HTTP API have for it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Search(JobFilter):
    """A page of a selection of jobs: newest first; those of a batch by their place in it, its last prompt first.

    `before`: only those that come after this one. `has_pictures`: only those that have stored an image.
    """

    limit: int
    before: UUID | None = None
    has_pictures: bool | None = None

    @property
    def order(self) -> str:
        return "position" if self.batch else "id"


@dataclass(frozen=True)
class Page:
    """The jobs of a page, in order. `resume`: what comes after this one may match, too, but was not looked at; None:
    all was looked at, or the limit is reached."""

    ids: Sequence[UUID]
    resume: UUID | None


@dataclass(frozen=True)
class Preview:
    """How many jobs match, by state, at which moment. `is_all`: false if there may be more that were not looked at."""

    at: datetime
    states: Mapping[JobState, int]
    is_all: bool

    @property
    def jobs(self) -> int:
        return sum(self.states.values())


def find(connection: Connection, tenant_id: UUID, search: Search) -> Page:
    """A page of the jobs that match."""
    if not search.q:
        return _scan(connection, tenant_id, search, window_of(search))
    found = _scan(connection, tenant_id, search, FIRST_WINDOW)
    if found.resume is None:
        return found
    older = replace(search, before=found.resume, limit=search.limit - len(found.ids))
    hits = connection.execute(_statement(HITS, older), parameters(tenant_id, older)).one()
    if hits.candidates < CANDIDATES:
        return Page([*found.ids, *hits.ids], None)
    return _scan(connection, tenant_id, search, WINDOW)


def preview(connection: Connection, tenant_id: UUID, selection: JobFilter) -> Preview:
    """Count the jobs that match: in the window, unless the index of characters knows all of them."""
    every = Search(limit=0, **selection.chosen())
    counted = _count(connection, COUNT, tenant_id, every, WINDOW)
    if counted.is_all or not every.q:
        return counted
    hits = _count(connection, COUNT_HITS, tenant_id, every, CANDIDATES)
    return hits if hits.is_all else counted


def where(selection: JobFilter) -> str:
    """The condition of a query of `jobs`; its parameters are `parameters`."""
    return f"{_index_filter(selection)} AND {_row_filter(selection)}"


def parameters(tenant_id: UUID, selection: JobFilter) -> dict[str, Any]:
    bounds: dict[str, Any] = {"window": WINDOW, "candidates": CANDIDATES}
    if selection.created_after:
        bounds["first"] = id_of_time((selection.created_after - SKEW).timestamp())
    if selection.created_before:
        bounds["last"] = id_of_time((selection.created_before + SKEW).timestamp())
    return {"tenant": tenant_id, **bounds, **selection.chosen()}


def _scan(connection: Connection, tenant_id: UUID, search: Search, window: int) -> Page:
    question = parameters(tenant_id, search) | {"window": window}
    row = connection.execute(_statement(LOOK, search), question).one()
    return Page(row.ids, row.resume)


def _count(connection: Connection, template: str, tenant_id: UUID, every: Search, most: int) -> Preview:
    rows = connection.execute(_statement(template, every), parameters(tenant_id, every)).all()
    states = {JobState(row.state): row.jobs for row in rows if row.state and row.jobs}
    return Preview(rows[0].at, states, rows[0].looked_at < most)


def _statement(template: str, search: Search) -> TextClause:
    narrowed = _index_filter(search) + (f" AND {BEFORE[search.order]}" if search.before else "")
    return _text(template, narrowed, _row_filter(search), search.order)


@lru_cache
def _text(template: str, narrowed: str, wanted: str, order: str) -> TextClause:
    return text(template.format(narrowed=narrowed, wanted=wanted, order=order))


def _index_filter(selection: JobFilter) -> str:
    """What one index knows. Of a batch's jobs most are queued or have succeeded: the batch itself narrows more then."""
    if selection.batch and selection.state not in RARE:
        known = ["batch_id = :batch"]
    else:
        known = ["tenant_id = :tenant"]
        if selection.state:
            known.append(STATES[selection.state])
    if selection.created_after:
        known.append("id >= :first")
    if selection.created_before:
        known.append("id < :last")
    return " AND ".join(known)


def window_of(search: Search) -> int:
    """How many jobs are looked at for a page: no more than it has, where an index knows all that is asked for.

    While there are no statistics of a batch yet, the planner would read and sort all of it for a larger one.
    """
    asked = search.chosen().keys() - {"limit", "before"}
    is_known = asked <= {"batch"} or (asked == {"state"} and search.state != JobState.QUEUED)
    return search.limit if is_known else WINDOW


def _row_filter(selection: JobFilter) -> str:
    return " AND ".join(["tenant_id = :tenant", *(FILTERS[name] for name in selection.chosen() if name in FILTERS)])


RARE = (JobState.RUNNING, JobState.FAILED, JobState.CANCELLED)

# Written out, as the conditions of the indexes are: from a parameter the planner could not tell that they hold.
STATES = {state: f"state = '{state}' AND state <> 'queued'" for state in JobState} | {
    JobState.QUEUED: "finished_at IS NULL"
}

BEFORE = {
    "id": "id < :before",
    "position": "position < (SELECT position FROM jobs WHERE id = :before AND batch_id = :batch)",
}

FILTERS = {
    "batch": "batch_id = :batch",
    "state": "state = cast(:state AS job_state)",
    "model": "model = :model",
    "tier": "tier = cast(:tier AS tier)",
    "created_after": "created_at > :created_after",
    "created_before": "created_at < :created_before",
    "q": "strpos(lower(recipe ->> 'prompt'), lower(:q)) > 0",
    "has_pictures": "EXISTS (SELECT FROM images WHERE images.job_id = job.id AND images.state = 'stored')",
}

# What `jobs_prompt_idx` holds, and what it is asked for.
CHARACTERS = "string_to_array(lower(recipe ->> 'prompt'), NULL) @> string_to_array(lower(:q), NULL)"

THE_WINDOW = "SELECT * FROM jobs WHERE {narrowed} ORDER BY {order} DESC LIMIT :window"

# The limit stands before the tenant and all else, so a word that is everybody's costs no more than one that is mine.
THE_HITS = f"SELECT * FROM jobs WHERE {CHARACTERS} LIMIT :candidates"

# Where to look on: from the last one of the window, if there is one and the page is not full.
LOOK = f"""
    WITH page AS MATERIALIZED (
        SELECT id, position FROM ({THE_WINDOW}) AS job WHERE {{wanted}} ORDER BY {{order}} DESC LIMIT :limit)
    SELECT ARRAY(SELECT id FROM page ORDER BY {{order}} DESC) AS ids,
           CASE WHEN (SELECT count(*) FROM page) < :limit
                THEN (SELECT id FROM (SELECT id, tenant_id FROM jobs WHERE {{narrowed}}
                                      ORDER BY {{order}} DESC OFFSET :window - 1 LIMIT 1) AS last
                      WHERE tenant_id = :tenant)
           END AS resume
"""

HITS = f"""
    WITH hit AS MATERIALIZED ({THE_HITS}),
    mine AS (SELECT id FROM hit AS job WHERE {{narrowed}} AND {{wanted}} ORDER BY {{order}} DESC LIMIT :limit)
    SELECT (SELECT count(*) FROM hit) AS candidates, ARRAY(SELECT id FROM mine) AS ids
"""

# A row for each state and one for all of them, which is there even if there are none.
COUNT = f"""
    SELECT now() AS at, state, count(*) FILTER (WHERE {{wanted}}) AS jobs, max(count(*)) OVER () AS looked_at
    FROM ({THE_WINDOW}) AS job GROUP BY ROLLUP (state)
"""

COUNT_HITS = f"""
    SELECT now() AS at, state, count(*) FILTER (WHERE {{narrowed}} AND {{wanted}}) AS jobs,
           max(count(*)) OVER () AS looked_at
    FROM ({THE_HITS}) AS job GROUP BY ROLLUP (state)
"""


def index_prompts(connection: Connection) -> None:
    """Sort what waits at the door of the index of prompts into it, or one in some thousand changes of a job has to."""
    connection.execute(INDEX_PROMPTS)


INDEX_PROMPTS = text("SELECT gin_clean_pending_list('jobs_prompt_idx')")
