"""What callers delete by its id. Commits first, then sends to Redis; control workers delete what is many.

The rules are in `common.deletion`. To delete a second time changes nothing.
"""

from uuid import UUID

from api import sentence
from api.deps import AppState
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.keys import Caller
from common.batches import lifecycle
from common.db import transaction
from common.deletion import deletions
from common.enums import Scope
from common.errors import Forbidden
from common.log import log_event


def delete_job(state: AppState, caller: Caller, job_id: UUID) -> None:
    """Raises NotFound."""
    with transaction(state.engine) as connection:
        if not deletions.delete_job(connection, caller, job_id):
            return
        audit.record(connection, caller, Action.DELETE_JOB, job_id)
    state.broker.announce_cancelled([job_id])
    log_event("deleted", job=job_id, tenant=caller.tenant_id)


def delete_image(state: AppState, caller: Caller, image_id: UUID) -> None:
    """Its job stays, and ends if this was its last image that had not ended. Raises NotFound."""
    with transaction(state.engine) as connection:
        job_id = deletions.delete_image(connection, caller, image_id)
        if job_id is None:
            return
        audit.record(connection, caller, Action.DELETE_IMAGE, image_id, job=job_id)
    state.broker.announce_changed([job_id])
    log_event("deleted", image=image_id, tenant=caller.tenant_id)


def delete_batch(state: AppState, caller: Caller, batch_id: UUID) -> None:
    """Raises NotFound."""
    with transaction(state.engine) as connection:
        if not deletions.delete_batch(connection, caller, batch_id):
            return
        audit.record(connection, caller, Action.DELETE_BATCH, batch_id)
    with transaction(state.engine) as connection:
        active = lifecycle.cancel_active(connection, batch_id)
    state.broker.announce_cancelled(active)
    state.broker.advance(batch_id)
    log_event("deleted", batch=batch_id, tenant=caller.tenant_id)


def delete_dataset(state: AppState, caller: Caller, dataset_id: UUID) -> None:
    """Raises NotFound."""
    with transaction(state.engine) as connection:
        if not deletions.delete_dataset(connection, caller, dataset_id):
            return
        audit.record(connection, caller, Action.DELETE_DATASET, dataset_id)
    log_event("deleted", dataset=dataset_id, tenant=caller.tenant_id)


def delete_upload(state: AppState, caller: Caller, upload_id: UUID) -> None:
    """Raises Forbidden for a key that may not upload, NotFound, and Conflict while there is a batch of it."""
    if not (caller.may(Scope.JOBS_WRITE) or caller.may(Scope.BATCHES_WRITE)):
        raise Forbidden(sentence("scope_missing", scope=Scope.JOBS_WRITE))
    with transaction(state.engine) as connection:
        if not deletions.delete_upload(connection, caller, upload_id):
            return
        audit.record(connection, caller, Action.DELETE_UPLOAD, upload_id)
    log_event("deleted", upload=upload_id, tenant=caller.tenant_id)
