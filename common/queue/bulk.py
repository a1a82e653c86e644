"""Bulk actions: all jobs of a tenant that match a filter are cancelled, retried or moved to another tier.

    search.preview ──► cancel | retry | change_tier, step by step      a step is one transaction, of 500 jobs at most

A step continues after the job where the one before ended, by id. It changes only jobs that existed at the preview, and
none twice: any step may be repeated, and the caller may stop after any. `search` defines which jobs match.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.admission import UNLIMITED, admit_images
from common.accounts.limits import Limits
from common.enums import Tier
from common.queue import jobs, tiers
from common.queue.lanes import Lane, make_lanes
from common.queue.search import JobFilter, parameters, where

FindRefusal = Callable[[Mapping[str, Any]], str | None]  # why a stored recipe is refused

STEP_JOBS = 500
FIRST = UUID(int=0)


@dataclass(frozen=True)
class Step:
    """The jobs that a step changed (or made), how many it skipped by reason, the models to wake, and where to go on.

    `after`: the job after which the next step continues; None when nothing matches any more.
    """

    changed: Sequence[UUID] = ()
    left_alone: Mapping[str, int] = field(default_factory=dict)
    models: Collection[str] = ()
    after: UUID | None = None


def cancel(
    connection: Connection, tenant_id: UUID, selection: JobFilter, until: datetime, after: UUID | None = None
) -> Step:
    """Cancel the next matching jobs that have not ended. `until`: the moment of the preview."""
    matching = _Matching(tenant_id, selection, until, IS_OPEN)
    found = matching.find(connection, after)
    locked = matching.lock(connection, found)
    return _step(found, jobs.cancel_locked(connection, locked), {"changed_meanwhile": len(found) - len(locked)})


def change_tier(
    connection: Connection,
    tenant_id: UUID,
    selection: JobFilter,
    until: datetime,
    after: UUID | None = None,
    *,
    tier: Tier,
    limits: Limits = UNLIMITED,
) -> Step:
    """Change the tier of the next matching jobs that have not ended and have another one. Raises LimitReached."""
    matching = _Matching(tenant_id, selection, until, f"{IS_OPEN} AND tier <> '{tier.value}'")
    found = matching.find(connection, after)
    tiers.lock_batches(connection, found, tenant_id)
    locked = matching.lock(connection, found)
    moved = tiers.change_locked(connection, tenant_id, locked, tier, limits)
    return _step(found, moved.jobs, {"changed_meanwhile": len(found) - len(locked)}, moved.models)


def retry(
    connection: Connection,
    tenant_id: UUID,
    selection: JobFilter,
    until: datetime,
    after: UUID | None = None,
    *,
    models: Collection[str],
    tiers_allowed: Collection[Tier] = tuple(Tier),
    refusal: FindRefusal = lambda recipe: None,
    request_id: str | None = None,
    limits: Limits = UNLIMITED,
    key_id: UUID | None = None,
) -> Step:
    """Retry the next matching jobs that failed or were cancelled, if their model and tier are allowed and `refusal` of
    their recipe is None.

    Skips jobs that have a retry already: if that one failed too, it may match itself. Raises LimitReached if not all of
    them fit.
    """
    matching = _Matching(tenant_id, selection, until, CAN_BE_RETRIED)
    found = matching.find(connection, after)
    locked = matching.lock(connection, found)
    parents = connection.execute(FIND_UNRETRIED, {"jobs": locked}).all()
    known = [parent for parent in parents if parent.model in models]
    of_tier = [parent for parent in known if parent.tier in tiers_allowed]
    allowed = [parent for parent in of_tier if refusal(parent.recipe) is None]
    admit_images(connection, tenant_id, limits, jobs.tiers_of(allowed))
    lanes = jobs.retry_lanes(connection, allowed, tenant_id)
    _lock_lanes(connection, set(lanes.values()))
    changed = [job.id for job in jobs.retry_locked(connection, allowed, lanes, request_id, key_id)]
    left_alone = {
        "changed_meanwhile": len(found) - len(locked),
        "retried_before": len(locked) - len(parents),
        "model_not_allowed": len(parents) - len(known),
        "tier_not_allowed": len(known) - len(of_tier),
        "prompt_refused": len(of_tier) - len(allowed),
    }
    return _step(found, changed, left_alone, {parent.model for parent in allowed})


@dataclass(frozen=True)
class _Matching:
    """The jobs that match a filter and a condition, and existed at the preview."""

    tenant_id: UUID
    selection: JobFilter
    until: datetime
    condition: str

    def find(self, connection: Connection, after: UUID | None) -> list[UUID]:
        """The next ones by id. Locks nothing."""
        page = {"after": after or FIRST, "limit": STEP_JOBS}
        return list(connection.execute(text(FIND.format(where=self._where)), self._parameters | page).scalars())

    def lock(self, connection: Connection, found: Sequence[UUID]) -> list[UUID]:
        """Lock those of them that still match."""
        statement = text(LOCK.format(where=self._where))
        return list(connection.execute(statement, self._parameters | {"jobs": found}).scalars())

    @property
    def _where(self) -> str:
        return f"{where(self.selection)} AND created_at <= :until AND {self.condition}"

    @property
    def _parameters(self) -> dict[str, Any]:
        return {"until": self.until, **parameters(self.tenant_id, self.selection)}


def _lock_lanes(connection: Connection, lanes: Collection[Lane]) -> None:
    """Lock the lanes of the retries by id, as a publish does: the inserts would lock them in any order."""
    connection.execute(LOCK_LANES, {"lanes": make_lanes(connection, lanes)})


def _step(
    found: Sequence[UUID], changed: Sequence[UUID], left_alone: Mapping[str, int], models: Collection[str] = ()
) -> Step:
    reasons = {reason: jobs for reason, jobs in left_alone.items() if jobs}
    return Step(changed, reasons, models, found[-1] if len(found) == STEP_JOBS else None)


IS_OPEN = "finished_at IS NULL"
CAN_BE_RETRIED = "state IN ('failed', 'cancelled')"

# Finds the next matching jobs.
FIND = "SELECT id FROM jobs WHERE {where} AND id > :after ORDER BY id LIMIT :limit"

# Locks those of the found jobs that still match.
LOCK = "SELECT id FROM jobs WHERE id = ANY(cast(:jobs AS uuid[])) AND {where} ORDER BY id FOR NO KEY UPDATE"

# Finds the jobs that have no retry. They are locked, so they get none meanwhile.
FIND_UNRETRIED = text("""
    SELECT id, tier, model, recipe, warnings FROM jobs
    WHERE id = ANY(:jobs) AND NOT EXISTS (SELECT FROM jobs AS child WHERE child.parent_id = jobs.id) ORDER BY id
""")

# Locks lanes by id.
LOCK_LANES = text("SELECT FROM lanes WHERE id = ANY(cast(:lanes AS bigint[])) ORDER BY id FOR NO KEY UPDATE")
