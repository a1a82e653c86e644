"""Search: the jobs of a tenant, or of all, by state, batch, time, model, tier, and words in their prompts.

A query scans a window of jobs at most, however many there are. Filters that an index holds (state, batch, time) narrow
the window; the others are checked inside it, newest first, and the result names the job after which to continue. Words
of many prompts are found in a small first window; rare words by the GIN index of characters, at any age.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from common.db import id_of_time
from common.enums import JobState, Tier

WINDOW = 50_000  # jobs that one query scans
FIRST_WINDOW = 5_000  # jobs that suffice for words of every hundredth prompt
CANDIDATES = 5_000  # jobs from the index of characters: they contain all characters of the words, in any order
SKEW_S = 300  # at most, between the clock that makes ids and that of the database


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Jobs of a tenant for which everything holds that is not None. `q`: words in the prompt."""

    state: JobState | None = None
    model: str | None = None
    batch: UUID | None = None
    tier: Tier | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None

    def chosen(self) -> dict[str, Any]:
        """What is not None, by its name in FILTERS and in the HTTP API."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Search(JobFilter):
    """A page of jobs, newest first; those of a batch by their position, last first.

    `before`: continue after this job. `has_pictures`: jobs with a stored image.
    """

    limit: int
    before: UUID | None = None
    has_pictures: bool | None = None

    @property
    def order(self) -> str:
        return "position" if self.batch else "id"


@dataclass(frozen=True)
class Page:
    """The jobs of a page, in order.

    `resume`: the last job of the window, if jobs after it may match; None when all were scanned or the page is full.
    """

    ids: Sequence[UUID]
    resume: UUID | None


@dataclass(frozen=True)
class Preview:
    """How many jobs match, by state, at which moment. `is_all`: False if jobs outside the window may match too."""

    at: datetime
    states: Mapping[JobState, int]
    is_all: bool

    @property
    def jobs(self) -> int:
        return sum(self.states.values())


def find(connection: Connection, tenant_id: UUID | None, search: Search) -> Page:
    """A page of the matching jobs. No tenant: of all."""
    if not search.q:
        return _scan(connection, tenant_id, search, window_of(search, _owned(tenant_id)))
    found = _scan(connection, tenant_id, search, FIRST_WINDOW)
    if found.resume is None:
        return found
    older = replace(search, before=found.resume, limit=search.limit - len(found.ids))
    hits = connection.execute(_statement(HITS, older, _owned(tenant_id)), parameters(tenant_id, older)).one()
    if hits.candidates < CANDIDATES:
        return Page([*found.ids, *hits.ids], None)
    return _scan(connection, tenant_id, search, WINDOW)


def preview(connection: Connection, tenant_id: UUID, selection: JobFilter) -> Preview:
    """Count the matching jobs: in the window, or all of them where the index of characters can."""
    every = Search(limit=0, **selection.chosen())
    counted = _count(connection, COUNT, tenant_id, every, WINDOW)
    if counted.is_all or not every.q:
        return counted
    hits = _count(connection, COUNT_HITS, tenant_id, every, CANDIDATES)
    return hits if hits.is_all else counted


def where(selection: JobFilter) -> str:
    """A condition on the `jobs` of a tenant, whose parameters are those of `parameters`."""
    return f"{_index_filter(selection, MINE)} AND {_row_filter(selection, MINE)}"


def parameters(tenant_id: UUID | None, selection: JobFilter) -> dict[str, Any]:
    bounds: dict[str, Any] = {"window": WINDOW, "candidates": CANDIDATES}
    if selection.created_after:
        bounds["first"] = id_of_time(selection.created_after.timestamp() - SKEW_S)
    if selection.created_before:
        bounds["last"] = id_of_time(selection.created_before.timestamp() + SKEW_S)
    return {"tenant": tenant_id, **bounds, **selection.chosen()}


def index_prompts(connection: Connection) -> None:
    """Flush the GIN index's pending list, so that no job update has to."""
    connection.execute(INDEX_PROMPTS)


def _scan(connection: Connection, tenant_id: UUID | None, search: Search, window: int) -> Page:
    question = parameters(tenant_id, search) | {"window": window}
    row = connection.execute(_statement(SCAN, search, _owned(tenant_id)), question).one()
    return Page(row.ids, row.resume)


def _count(connection: Connection, template: str, tenant_id: UUID, every: Search, most: int) -> Preview:
    rows = connection.execute(_statement(template, every, MINE), parameters(tenant_id, every)).all()
    states = {JobState(row.state): row.jobs for row in rows if row.state and row.jobs}
    return Preview(rows[0].at, states, rows[0].looked_at < most)


def _owned(tenant_id: UUID | None) -> str:
    return MINE if tenant_id else ANY_TENANT


def _statement(template: str, search: Search, owned: str) -> TextClause:
    narrowed = _index_filter(search, owned) + (f" AND {BEFORE[search.order]}" if search.before else "")
    return _text(template, narrowed, _row_filter(search, owned), search.order, owned)


@lru_cache
def _text(template: str, narrowed: str, wanted: str, order: str, owned: str) -> TextClause:
    return text(template.format(narrowed=narrowed, wanted=wanted, order=order, owned=owned))


def _index_filter(selection: JobFilter, owned: str) -> str:
    """The conditions that one index holds. A batch narrows more than a frequent state does. The jobs of all tenants
    have no index by state.
    """
    if selection.batch and (selection.state not in RARE or owned == ANY_TENANT):
        known = ["batch_id = :batch"]
    else:
        known = [owned]
        if selection.state and owned == MINE:
            known.append(STATES[selection.state])
    if selection.created_after:
        known.append("id >= :first")
    if selection.created_before:
        known.append("id < :last")
    return " AND ".join(known)


def window_of(search: Search, owned: str) -> int:
    """How many jobs to scan: as many as the page has where an index holds all conditions.

    With a larger window the planner may sort all jobs of a batch, while it has no statistics of it.
    """
    asked = search.chosen().keys() - {"limit", "before"}
    is_known = asked <= {"batch"} or (asked == {"state"} and search.state != JobState.QUEUED and owned == MINE)
    return search.limit if is_known else WINDOW


def _row_filter(selection: JobFilter, owned: str) -> str:
    return " AND ".join([owned, *(FILTERS[name] for name in selection.chosen() if name in FILTERS)])


MINE, ANY_TENANT = "tenant_id = :tenant", "TRUE"

RARE = (JobState.RUNNING, JobState.FAILED, JobState.CANCELLED)

# Literals, as in the conditions of the indexes: with a parameter the planner cannot use a partial index.
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

# Answered by `jobs_prompt_idx`.
CHARACTERS = "string_to_array(lower(recipe ->> 'prompt'), NULL) @> string_to_array(lower(:q), NULL)"

# The newest jobs that the index conditions allow.
THE_WINDOW = "SELECT * FROM jobs WHERE {narrowed} ORDER BY {order} DESC LIMIT :window"

# The limit applies before the tenant, so that a frequent word of other tenants costs no more.
THE_HITS = f"SELECT * FROM jobs WHERE {CHARACTERS} LIMIT :candidates"

# Filters the window; `resume` is its last job, if the page is not full.
SCAN = f"""
    WITH page AS MATERIALIZED (
        SELECT id, position FROM ({THE_WINDOW}) AS job WHERE {{wanted}} ORDER BY {{order}} DESC LIMIT :limit)
    SELECT ARRAY(SELECT id FROM page ORDER BY {{order}} DESC) AS ids,
           CASE WHEN (SELECT count(*) FROM page) < :limit
                THEN (SELECT id FROM (SELECT id, tenant_id FROM jobs WHERE {{narrowed}}
                                      ORDER BY {{order}} DESC OFFSET :window - 1 LIMIT 1) AS last
                      WHERE {{owned}})
           END AS resume
"""

# Filters the candidates of the index of characters.
HITS = f"""
    WITH hit AS MATERIALIZED ({THE_HITS}),
    mine AS (SELECT id FROM hit AS job WHERE {{narrowed}} AND {{wanted}} ORDER BY {{order}} DESC LIMIT :limit)
    SELECT (SELECT count(*) FROM hit) AS candidates, ARRAY(SELECT id FROM mine) AS ids
"""

# Counts the window by state, with a row of all states, which is there even if no job matches.
COUNT = f"""
    SELECT now() AS at, state, count(*) FILTER (WHERE {{wanted}}) AS jobs, max(count(*)) OVER () AS looked_at
    FROM ({THE_WINDOW}) AS job GROUP BY ROLLUP (state)
"""

# Counts the candidates of the index of characters in the same way.
COUNT_HITS = f"""
    SELECT now() AS at, state, count(*) FILTER (WHERE {{narrowed}} AND {{wanted}}) AS jobs,
           max(count(*)) OVER () AS looked_at
    FROM ({THE_HITS}) AS job GROUP BY ROLLUP (state)
"""

# Flushes the pending list of the GIN index.
INDEX_PROMPTS = text("SELECT gin_clean_pending_list('jobs_prompt_idx')")
