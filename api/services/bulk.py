"""Cancel, retry or change the tier of all jobs that match a filter, in steps: each is committed, then sent to Redis.

A request ends after MAX_JOBS or MAX_S, and its report says after which job the next request goes on. If it fails in
between, the committed steps stay done and recorded; the same request again changes nothing twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from api.deps import AppState
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.batches import lifecycle
from common.db import transaction
from common.enums import Tier
from common.errors import LicenceNotAccepted, LimitReached, UnknownModel
from common.log import log_event
from common.queue import bulk
from common.queue.bulk import Step
from common.queue.search import JobFilter
from common.recipes import judged

MAX_JOBS = 10_000
MAX_S = 5.0
CLOCKS_DIFFER = timedelta(hours=1)  # at most, those of this host and of the database

TakeStep = Callable[[Connection, UUID | None], Step]  # the next step after a job


@dataclass(frozen=True)
class Report:
    """How many jobs a request changed, how many it left alone by reason, and after which job the next one goes on.

    The reasons: `changed_meanwhile`; of a retry also `retried_before`, `model_not_allowed`, `tier_not_allowed` and
    `prompt_refused`. Jobs that the change does not apply to, such as ended ones when cancelling, are not counted: the
    preview counts them by state. `after` is None when all is done.
    """

    changed: int
    left_alone: Mapping[str, int]
    after: UUID | None


def cancel(state: AppState, caller: Caller, chosen: JobFilter, until: datetime, after: UUID | None = None) -> Report:
    """Cancel matching jobs that existed at the preview (`until`) and have not ended."""

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.cancel(connection, caller.tenant_id, chosen, until, after)

    def send(step: Step) -> None:
        state.broker.announce_cancelled(step.changed)

    return _run_steps(state, caller, _record(Action.CANCEL_JOBS, chosen, until), take, send, after)


def change_tier(
    state: AppState, caller: Caller, chosen: JobFilter, until: datetime, tier: Tier, after: UUID | None = None
) -> Report:
    """Change the tier of matching jobs that existed at the preview (`until`) and have not ended.

    Raises TierNotAllowed, and LimitReached as `retry` does.
    """
    caller.require_tier(tier)
    limits = state.limits_of(caller)

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.change_tier(connection, caller.tenant_id, chosen, until, after, tier=tier, limits=limits)

    record = _record(Action.CHANGE_TIERS, chosen, until, tier=tier)
    return _run_steps(state, caller, record, take, partial(_wake, state), after)


def change_tier_of_batch(state: AppState, caller: Caller, batch_id: UUID, tier: Tier) -> Report:
    """Change the tier of a batch and of its jobs that have not ended; those that it gets later have it too.

    Raises NotFound, TierNotAllowed, LimitReached, or Conflict when the batch has ended.
    """
    caller.require_tier(tier)
    with transaction(state.engine) as connection:
        lifecycle.change_tier(connection, batch_id, caller.tenant_id, tier)
        audit.record(connection, caller, Action.CHANGE_BATCH_TIER, batch_id, tier=tier)
    report = change_tier(state, caller, JobFilter(batch=batch_id), datetime.now(UTC) + CLOCKS_DIFFER, tier)
    state.broker.advance(batch_id)  # who expands it now begins again
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to=tier)
    return report


def retry(state: AppState, caller: Caller, chosen: JobFilter, until: datetime, after: UUID | None = None) -> Report:
    """Retry, once, matching jobs that existed at the preview (`until`) and failed or were cancelled.

    Raises LimitReached if its first step is over a limit; a later one ends the request.
    """
    models, limits = usable_models(state, caller), state.limits_of(caller)
    refusal = partial(judged.refusal_of_stored, catalog=state.catalog, policy=state.policy)

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.retry(
            connection,
            caller.tenant_id,
            chosen,
            until,
            after,
            models=models,
            tiers_allowed=caller.tiers,
            request_id=caller.request_id,
            limits=limits,
            key_id=caller.key_id,
            refusal=refusal,
        )

    record = _record(Action.RETRY_JOBS, chosen, until)
    return _run_steps(state, caller, record, take, partial(_wake, state), after)


def usable_models(state: AppState, caller: Caller) -> frozenset[str]:
    """The models of the catalogue whose licences the tenant has accepted, or that require no acceptance."""
    return frozenset(model for model in state.catalog.models if _is_usable(state, caller, model))


def _is_usable(state: AppState, caller: Caller, model: str) -> bool:
    try:
        state.acceptances.require(caller.tenant_id, [state.catalog.get(model)])
    except (UnknownModel, LicenceNotAccepted):
        return False
    return True


def _record(action: Action, chosen: JobFilter, until: datetime, **detail: Any) -> partial[UUID]:
    """Records the change in the audit, once it is called with the connection, the caller and the counts."""
    return partial(audit.record, action=action, filter=chosen.chosen(), until=until, **detail)


def _run_steps(
    state: AppState,
    caller: Caller,
    record: Callable[..., UUID],
    take: TakeStep,
    send: Callable[[Step], object],
    after: UUID | None,
) -> Report:
    changed, left_alone, record_id = 0, Counter[str](), None
    ends_at = time.monotonic() + MAX_S
    while True:
        try:
            with transaction(state.engine) as connection:
                step = take(connection, after)
                changed += len(step.changed)
                left_alone.update(step.left_alone)
                counts = {"changed": changed, "left_alone": left_alone}
                if record_id:
                    audit.extend(connection, record_id, **counts)
                elif changed:
                    record_id = record(connection, caller, **counts)
        except LimitReached:
            if not changed:
                raise
            break
        if step.changed:
            send(step)
        after = step.after
        if after is None or changed + left_alone.total() >= MAX_JOBS or time.monotonic() > ends_at:
            break
    log_event("jobs_changed", tenant=caller.tenant_id, changed=changed, request=caller.request_id)
    return Report(changed, dict(left_alone), after)


def _wake(state: AppState, step: Step) -> None:
    for model in sorted(step.models):
        state.broker.wake(model)
