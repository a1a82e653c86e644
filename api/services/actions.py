"""What callers do to what is there already: each is one transaction with its note in the audit, then what is sent.

Routes and dashboard come here, so that both do the same. Jobs, batches and datasets are submitted by their routes; what
is done to all that match a filter is in `bulk`.
"""

from uuid import UUID

from api.deps import AppState
from api.queries.jobs import find_job
from common.accounts import audit, licences, tenants
from common.accounts.audit import Action
from common.accounts.tenants import Caller, NewKey
from common.batches import lifecycle as batches
from common.batches import retries
from common.catalog.catalog import Model
from common.db import transaction
from common.enums import Scope, Tier
from common.errors import Conflict, NotFound
from common.log import log_event
from common.queue import jobs, tiers, workers


def cancel_job(farm: AppState, caller: Caller, job_id: UUID) -> None:
    """One that has ended stays as it is."""
    with transaction(farm.engine) as connection:
        is_cancelled_now = jobs.cancel(connection, job_id, caller.tenant_id)
        if is_cancelled_now:
            audit.record(connection, caller, Action.CANCEL_JOB, job_id)
    if is_cancelled_now:
        farm.messages.announce_cancelled([job_id])
        log_event("job_cancelled", job=job_id, tenant=caller.tenant_id)


def retry_job(farm: AppState, caller: Caller, job_id: UUID) -> UUID:
    """The new job. Raises Conflict while the old one has not ended."""
    with transaction(farm.autocommit) as connection:
        parent = find_job(connection, caller.tenant_id, job_id, "")
    farm.acceptances.require(caller.tenant_id, [farm.catalog.get(parent.recipe.model)])
    with transaction(farm.engine) as connection:
        again = jobs.retry(connection, job_id, caller.tenant_id, caller.request_id)
        audit.record(connection, caller, Action.RETRY_JOB, job_id, job=again.id)
    farm.messages.wake_soon(again.model, again.id, again.tier)
    log_event(
        "job_submitted",
        job=again.id,
        tenant=caller.tenant_id,
        images=parent.recipe.count,
        request=caller.request_id,
    )
    return again.id


def change_tier(farm: AppState, caller: Caller, job_id: UUID, tier: Tier) -> None:
    """Raises Conflict when the job has ended."""
    with transaction(farm.engine) as connection:
        moved = tiers.change(connection, job_id, caller.tenant_id, tier)
        if moved.jobs:
            audit.record(connection, caller, Action.CHANGE_TIER, job_id, tier=tier)
    for model in moved.models:
        farm.messages.wake_soon(model, job_id, tier)
    if moved.jobs:
        log_event("job_changed", job=job_id, tenant=caller.tenant_id, to=tier)


def pause_batch(farm: AppState, caller: Caller, batch_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        batches.pause(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.PAUSE_BATCH, batch_id)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="paused")


def resume_batch(farm: AppState, caller: Caller, batch_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        models = batches.resume(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.RESUME_BATCH, batch_id)
    for model in sorted(set(models)):
        farm.messages.wake(model)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="resumed")


def cancel_batch(farm: AppState, caller: Caller, batch_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        batches.close(connection, batch_id, caller.tenant_id)
        audit.record(connection, caller, Action.CANCEL_BATCH, batch_id)
    with transaction(farm.engine) as connection:
        in_hand = batches.cancel_active(connection, batch_id)
    farm.messages.announce_cancelled(in_hand)
    farm.messages.advance(batch_id)
    log_event("batch_changed", batch=batch_id, tenant=caller.tenant_id, to="cancelled")


def retry_failed(farm: AppState, caller: Caller, batch_id: UUID) -> tuple[UUID, bool]:
    """The batch that draws again what failed of this one, and whether it is new. Raises Conflict where nothing did."""
    with transaction(farm.autocommit) as connection:
        models = retries.models(connection, caller.tenant_id, batch_id)
    farm.acceptances.require(caller.tenant_id, map(farm.catalog.get, models))
    with transaction(farm.engine) as connection:
        made, is_new = retries.submit(connection, caller.tenant_id, batch_id, request_id=caller.request_id)
        if is_new:
            audit.record(connection, caller, Action.RETRY_FAILED, batch_id, batch=made)
    if is_new:
        farm.messages.advance(made)
        log_event("batch_submitted", batch=made, parent=batch_id, tenant=caller.tenant_id, request=caller.request_id)
    return made, is_new


def drain_worker(farm: AppState, caller: Caller, worker_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        workers.drain(connection, worker_id, "an operator asked for it")
        audit.record(connection, caller, Action.DRAIN_WORKER, worker_id)


def resume_worker(farm: AppState, caller: Caller, worker_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        workers.resume(connection, worker_id)
        audit.record(connection, caller, Action.RESUME_WORKER, worker_id)


def create_key(farm: AppState, caller: Caller, name: str, scopes: list[Scope]) -> NewKey:
    """The key with its secret, which is known this once."""
    pepper = farm.settings.key_pepper.get_secret_value()
    with transaction(farm.engine) as connection:
        key = tenants.create_key(connection, caller.tenant_id, name, scopes, pepper)
        audit.record(connection, caller, Action.CREATE_KEY, key.id, name=name, scopes=scopes)
    return key


def revoke_key(farm: AppState, caller: Caller, key_id: UUID) -> None:
    with transaction(farm.engine) as connection:
        tenants.revoke_key(connection, caller.tenant_id, key_id)
        audit.record(connection, caller, Action.REVOKE_KEY, key_id)


def accept_licence(farm: AppState, caller: Caller, model: str, version: str) -> Model:
    """The model's entry. Raises NotFound, or Conflict when that is not the version of its licence."""
    if (entry := farm.catalog.models.get(model)) is None:
        raise NotFound(f"There is no model {model}.")
    licence = entry.licence
    if version != licence.version:
        raise Conflict(f"{licence.name} is at version {licence.version}, which is the one to read: {licence.url}")
    with transaction(farm.engine) as connection:
        licences.accept(connection, caller.tenant_id, caller.key_id, licence)
        audit.record(connection, caller, Action.ACCEPT_LICENCE, model, licence=licence.name, version=version)
    return entry
