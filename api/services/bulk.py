"""What is done to all jobs that match a filter, as far as one request goes: step by step, each committed, then sent.

A request ends after MOST_JOBS or MOST_S, and its report says after which job the next one goes on. Whatever ends it
before, the steps that were committed are done and noted; the same request again harms nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from api.deps import AppState
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.tenants import Caller
from common.db import transaction
from common.enums import Tier
from common.errors import LicenceNotAccepted, UnknownModel
from common.log import log_event
from common.queue import bulk
from common.queue.bulk import Step
from common.queue.search import JobFilter

MOST_JOBS = 10_000
MOST_S = 5.0

Take = Callable[[Connection, UUID | None], Step]  # the next step


@dataclass(frozen=True)
class Report:
    """How many jobs a request changed, how many it left alone by reason, and after which job the next one goes on.

    Left alone are jobs that were `changed_meanwhile`, and of those to be retried also what was `retried_before` or is
    of a model that is `model_not_allowed`. Jobs to which nothing can be done, such as those to be cancelled that had
    ended before, are not looked at: the preview counts them by their state. `after` is None when all is done.
    """

    changed: int
    left_alone: Mapping[str, int]
    after: UUID | None


def cancel(state: AppState, caller: Caller, chosen: JobFilter, until: datetime, after: UUID | None = None) -> Report:
    """Cancel all that were there at the preview (`until`) and have not ended."""

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.cancel(connection, caller.tenant_id, chosen, until, after)

    def send(step: Step) -> None:
        state.broker.announce_cancelled(step.changed)

    return _carry_out(state, caller, _noted(Action.CANCEL_JOBS, chosen, until), take, send, after)


def change_tier(
    state: AppState, caller: Caller, chosen: JobFilter, until: datetime, tier: Tier, after: UUID | None = None
) -> Report:
    """Change the tier of all that were there at the preview and have not ended."""

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.change_tier(connection, caller.tenant_id, chosen, until, after, tier=tier)

    noted = _noted(Action.CHANGE_TIERS, chosen, until, tier=tier)
    return _carry_out(state, caller, noted, take, partial(_wake, state), after)


def retry(state: AppState, caller: Caller, chosen: JobFilter, until: datetime, after: UUID | None = None) -> Report:
    """Retry all that were there at the preview and failed or were cancelled, once."""
    models = usable_models(state, caller)

    def take(connection: Connection, after: UUID | None) -> Step:
        return bulk.retry(
            connection, caller.tenant_id, chosen, until, after, models=models, request_id=caller.request_id
        )

    noted = _noted(Action.RETRY_JOBS, chosen, until)
    return _carry_out(state, caller, noted, take, partial(_wake, state), after)


def usable_models(state: AppState, caller: Caller) -> frozenset[str]:
    """The models that are in the catalogue and whose licences the tenant has accepted, or need not."""
    return frozenset(model for model in state.catalog.models if _is_usable(state, caller, model))


def _is_usable(state: AppState, caller: Caller, model: str) -> bool:
    try:
        state.acceptances.require(caller.tenant_id, [state.catalog.get(model)])
    except (UnknownModel, LicenceNotAccepted):
        return False
    return True


def _noted(action: Action, chosen: JobFilter, until: datetime, **detail: Any) -> partial[UUID]:
    """What the audit says of it, but for the counts."""
    return partial(audit.record, action=action, filter=chosen.chosen(), until=until, **detail)


def _carry_out(
    state: AppState,
    caller: Caller,
    note: Callable[..., UUID],
    take: Take,
    send: Callable[[Step], object],
    after: UUID | None,
) -> Report:
    changed, left_alone, note_id = 0, Counter[str](), None
    ends_at = time.monotonic() + MOST_S
    while True:
        with transaction(state.engine) as connection:
            step = take(connection, after)
            changed += len(step.changed)
            left_alone.update(step.left_alone)
            counts = {"changed": changed, "left_alone": left_alone}
            if note_id:
                audit.extend(connection, note_id, **counts)
            elif changed:
                note_id = note(connection, caller, **counts)
        if step.changed:
            send(step)
        after = step.after
        if after is None or changed + left_alone.total() >= MOST_JOBS or time.monotonic() > ends_at:
            break
    log_event("jobs_changed", tenant=caller.tenant_id, changed=changed, request=caller.request_id)
    return Report(changed, dict(left_alone), after)


def _wake(state: AppState, step: Step) -> None:
    for model in sorted(step.models):
        state.broker.wake(model)
