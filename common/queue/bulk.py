"""Selections: all jobs of a tenant that match a filter, counted first, then cancelled, retried or moved to a tier.

    search.preview ──► cancel | retry | change_tier, step by step      a step is one transaction, of 500 jobs at most

A step goes on where the one before ended, by id, and only to jobs that were there at the preview; what an earlier step
has done already it leaves alone. So each may be repeated, and whoever carries one out may stop at any step. What is
done to a job is done by `jobs`, `retries` and `tiers`; which jobs match is `search`'s to say.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import Tier
from common.queue import jobs, retries, tiers
from common.queue.search import JobFilter, parameters, where

STEP_JOBS = 500
FIRST = UUID(int=0)


@dataclass(frozen=True)
class Step:
    """What a step changed, what it left alone by reason, and the job after which the next one goes on.

    `after` is None when nothing matches any more.
    """

    changed: Sequence[UUID] = ()
    left_alone: Mapping[str, int] = field(default_factory=dict)
    models: Collection[str] = ()  # to wake
    after: UUID | None = None


def cancel(
    connection: Connection, tenant_id: UUID, selection: JobFilter, until: datetime, after: UUID | None = None
) -> Step:
    """Cancel the next of them that have not ended."""
    chosen = _Chosen(tenant_id, selection, until, IS_OPEN)
    picked = chosen.pick(connection, after)
    locked = chosen.lock(connection, picked)
    return _step(picked, jobs.cancel_locked(connection, locked), {"changed_meanwhile": len(picked) - len(locked)})


def change_tier(
    connection: Connection,
    tenant_id: UUID,
    selection: JobFilter,
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
    selection: JobFilter,
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
    selection: JobFilter
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
        return f"{where(self.selection)} AND created_at <= :until AND {self.eligible}"

    @property
    def _parameters(self) -> dict[str, Any]:
        return {"until": self.until, **parameters(self.tenant_id, self.selection)}


def _step(
    picked: Sequence[UUID], changed: Sequence[UUID], left_alone: Mapping[str, int], models: Collection[str] = ()
) -> Step:
    reasons = {reason: jobs for reason, jobs in left_alone.items() if jobs}
    return Step(changed, reasons, models, picked[-1] if len(picked) == STEP_JOBS else None)


IS_OPEN = "finished_at IS NULL"
CAN_BE_RETRIED = "state IN ('failed', 'cancelled')"

PICK = "SELECT id FROM jobs WHERE {where} AND id > :after ORDER BY id LIMIT :limit"

LOCK = "SELECT id FROM jobs WHERE id = ANY(cast(:jobs AS uuid[])) AND {where} ORDER BY id FOR NO KEY UPDATE"
