"""The audit: who did what to whose, by which key and way, from which address, in which request. Kept for a year.

A record is written in the transaction of its action, so neither exists without the other. Submitted jobs have no
record: they are rows themselves.
"""

import json
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.keys import Caller
from common.db import new_id


class Action(StrEnum):
    """What was done; the subject of a record is what it was done to."""

    CANCEL_JOB = "job.cancel"
    DELETE_JOB = "job.delete"
    DELETE_BATCH = "batch.delete"
    DELETE_IMAGE = "image.delete"
    DELETE_DATASET = "dataset.delete"
    DELETE_UPLOAD = "upload.delete"
    RETRY_JOB = "job.retry"
    CHANGE_TIER = "job.tier"
    CANCEL_JOBS = "jobs.cancel"  # all that match a filter
    RETRY_JOBS = "jobs.retry"
    CHANGE_TIERS = "jobs.tier"
    SUBMIT_BATCH = "batch.submit"
    PAUSE_BATCH = "batch.pause"
    RESUME_BATCH = "batch.resume"
    CANCEL_BATCH = "batch.cancel"
    CHANGE_BATCH_TIER = "batch.tier"
    RETRY_FAILED = "batch.retry_failed"
    EXPORT_DATASET = "dataset.export"
    DRAIN_WORKER = "worker.drain"
    RESUME_WORKER = "worker.resume"
    CREATE_KEY = "key.create"
    REVOKE_KEY = "key.revoke"
    ACCEPT_LICENCE = "licence.accept"
    SIGN_IN = "dashboard.sign_in"
    SIGN_OUT = "dashboard.sign_out"
    CREATE_TENANT = "tenant.create"
    CHANGE_TENANT = "tenant.change"
    SUSPEND_TENANT = "tenant.suspend"
    RESUME_TENANT = "tenant.resume"
    ERASE_TENANT = "tenant.erase"


def record(
    connection: Connection,
    caller: Caller,
    action: Action,
    subject: UUID | str | None = None,
    acted_on: UUID | None = None,
    **detail: Any,
) -> UUID:
    """Record an action; the id of the record. `detail` must be small and fit JSON. `acted_on`: the tenant whose the
    subject is; None: the caller's own.
    """
    record_id = new_id()
    connection.execute(
        RECORD,
        {
            "id": record_id,
            "tenant": caller.tenant_id,
            "key": caller.key_id,
            "via": caller.via.value,
            "action": action.value,
            "subject": None if subject is None else str(subject),
            "detail": json.dumps(detail, ensure_ascii=False, default=str),
            "request": caller.request_id,
            "address": caller.address,
            "acted_on": acted_on if acted_on != caller.tenant_id else None,
        },
    )
    return record_id


def extend(connection: Connection, record_id: UUID, **detail: Any) -> None:
    """Add to the detail of a record: an action may take several transactions."""
    connection.execute(EXTEND, {"id": record_id, "detail": json.dumps(detail, ensure_ascii=False, default=str)})


# Insert a record.
RECORD = text("""
    INSERT INTO audit (id, tenant_id, key_id, via, action, subject, detail, request_id, address, acted_on_id)
    VALUES (:id, :tenant, :key, cast(:via AS via), :action, :subject, cast(:detail AS jsonb), :request, :address,
            :acted_on)
""")

# Merge more detail into a record.
EXTEND = text("UPDATE audit SET detail = detail || cast(:detail AS jsonb) WHERE id = :id")
