"""Selections: all jobs of a tenant that match a filter, counted first, then cancelled, retried or moved to a tier.

    preview ──► cancel | retry | change_tier, step by step      a step is one transaction, of 500 jobs at most

A step goes on where the one before ended, by id, and only to jobs that were there at the preview; what an earlier step
has done already it leaves alone. So each may be repeated, and whoever carries one out may stop at any step. What is
done to a job is done by `jobs`, `retries` and `tiers`; this knows which jobs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common import jobs, retries, tiers
from common.states import JobState, Tier

STEP_JOBS = 500
COUNTED = 100_000  # matching jobs are counted up to here
FIRST = UUID(int=0)


@dataclass(frozen=True, kw_only=True)
class Selection:
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


@dataclass(frozen=True)
class Preview:
    """How many jobs match, by state, at which moment. `is_all`: false if there are more than were counted."""

    at: datetime
    states: Mapping[JobState, int]
    is_all: bool

    @property
    def jobs(self) -> int:
        return sum(self.states.values())


@dataclass(frozen=True)
class Step:
    """What a step changed, what it left alone by reason, and the job after which the next one goes on.

    `after` is None when nothing matches any more.
    """

    changed: Sequence[UUID] = ()
    left_alone: Mapping[str, int] = field(default_factory=dict)
    models: Collection[str] = ()  # to wake
    after: UUID | None = None


def conditions(selection: Selection) -> list[str]:
    """What the WHERE clause of a query of `jobs` says of these jobs; its parameters are `selection.chosen()`."""
    found = [FILTERS[name] for name in selection.chosen() if name in FILTERS]
    if selection.state in (JobState.QUEUED, JobState.RUNNING):
        found.append(IS_OPEN)  # the index of open jobs
    return found


def preview(connection: Connection, tenant_id: UUID, selection: Selection) -> Preview:
    """Count the jobs that match, up to COUNTED."""
    where = " AND ".join(["tenant_id = :tenant", *conditions(selection)])
    count = text(COUNT.format(where=where))
    rows = connection.execute(count, {"tenant": tenant_id, "limit": COUNTED + 1, **selection.chosen()}).all()
    states = {JobState(row.state): row.jobs for row in rows if row.state}
    return Preview(rows[0].at, states, sum(states.values()) <= COUNTED)


def cancel(
    connection: Connection, tenant_id: UUID, selection: Selection, until: datetime, after: UUID | None = None
) -> Step:
    """Cancel the next of them that have not ended."""
    chosen = _Chosen(tenant_id, selection, until, IS_OPEN)
    picked = chosen.pick(connection, after)
    locked = chosen.lock(connection, picked)
    return _step(picked, jobs.cancel_locked(connection, locked), {"changed_meanwhile": len(picked) - len(locked)})


def change_tier(
    connection: Connection,
    tenant_id: UUID,
    selection: Selection,
    until: datetime,
    after: UUID | None = None,
    *,
    tier: Tier,
) -> Step:
    """Change the tier of the next of them that have not ended and have another."""
    chosen = _Chosen(tenant_id, selection, until, f"{IS_OPEN} AND tier <> '{tier.value}'")
    picked = chosen.pick(connection, after)
    tiers.lock_batches(connection, picked, tenant_id)
    locked = chosen.lock(connection, picked)
    moved = tiers.change_locked(connection, locked, tier)
    return _step(picked, moved.jobs, {"changed_meanwhile": len(picked) - len(locked)}, moved.models)


def retry(
    connection: Connection,
    tenant_id: UUID,
    selection: Selection,
    until: datetime,
    after: UUID | None = None,
    *,
    models: Collection[str],
    request_id: str | None = None,
) -> Step:
    """Retry the next of them that failed or were cancelled, if the tenant may use their model: it is one of `models`.

    A job that was retried before is left alone: what failed again is its retry, which may match too.
    """
    chosen = _Chosen(tenant_id, selection, until, CAN_BE_RETRIED)
    picked = chosen.pick(connection, after)
    locked = chosen.lock(connection, picked)
    parents = retries.parents(connection, locked)
    allowed = [parent for parent in parents if parent.model in models]
    changed = retries.retry_locked(connection, allowed, request_id)
    left_alone = {
        "changed_meanwhile": len(picked) - len(locked),
        "retried_before": len(locked) - len(parents),
        "model_not_allowed": len(parents) - len(allowed),
    }
    return _step(picked, changed, left_alone, {parent.model for parent in allowed})


@dataclass(frozen=True)
class _Chosen:
    """Those of a selection that something can be done to, and that were there at the preview."""

    tenant_id: UUID
    selection: Selection
    until: datetime
    eligible: str

    def pick(self, connection: Connection, after: UUID | None) -> list[UUID]:
        """The next ones by id, nothing locked."""
        page = {"after": after or FIRST, "limit": STEP_JOBS}
        return list(connection.execute(text(PICK.format(where=self._where)), self._parameters | page).scalars())

    def lock(self, connection: Connection, picked: Sequence[UUID]) -> list[UUID]:
        """Lock those of them for which all of it still holds."""
        statement = text(LOCK.format(where=self._where))
        return list(connection.execute(statement, self._parameters | {"jobs": picked}).scalars())

    @property
    def _where(self) -> str:
        return " AND ".join(["tenant_id = :tenant", "created_at <= :until", self.eligible, *conditions(self.selection)])

    @property
    def _parameters(self) -> dict[str, Any]:
        return {"tenant": self.tenant_id, "until": self.until, **self.selection.chosen()}


def _step(
    picked: Sequence[UUID], changed: Sequence[UUID], left_alone: Mapping[str, int], models: Collection[str] = ()
) -> Step:
    reasons = {reason: jobs for reason, jobs in left_alone.items() if jobs}
    return Step(changed, reasons, models, picked[-1] if len(picked) == STEP_JOBS else None)


IS_OPEN = "finished_at IS NULL"
CAN_BE_RETRIED = "state IN ('failed', 'cancelled')"

FILTERS = {
    "batch": "batch_id = :batch",
    "state": "state = cast(:state AS job_state)",
    "model": "model = :model",
    "tier": "tier = cast(:tier AS tier)",
    "created_after": "created_at > :created_after",
    "created_before": "created_at < :created_before",
    "q": "strpos(lower(recipe ->> 'prompt'), lower(:q)) > 0",
}

COUNT = """
    SELECT now() AS at, matching.state, matching.jobs
    FROM (VALUES (1)) AS always LEFT JOIN (
        SELECT state, count(*) AS jobs FROM (SELECT state FROM jobs WHERE {where} LIMIT :limit) AS found
        GROUP BY state) AS matching ON true
"""

PICK = "SELECT id FROM jobs WHERE {where} AND id > :after ORDER BY id LIMIT :limit"

LOCK = "SELECT id FROM jobs WHERE id = ANY(cast(:jobs AS uuid[])) AND {where} ORDER BY id FOR NO KEY UPDATE"
