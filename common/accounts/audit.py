"""The audit: who did what, by which key and way, in which request. Records are kept for a year.

A record is written in the transaction of its action, so neither exists without the other. Submitted jobs have no
record: they are rows themselves.
"""

import json
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.tenants import Caller
from common.db import new_id


class Action(StrEnum):
    """What was done; the subject of a record is what it was done to."""

    CANCEL_JOB = "job.cancel"
    RETRY_JOB = "job.retry"
    CHANGE_TIER = "job.tier"
    CANCEL_JOBS = "jobs.cancel"  # all that match a filter
    RETRY_JOBS = "jobs.retry"
    CHANGE_TIERS = "jobs.tier"
    SUBMIT_BATCH = "batch.submit"
    PAUSE_BATCH = "batch.pause"
    RESUME_BATCH = "batch.resume"
    CANCEL_BATCH = "batch.cancel"
    RETRY_FAILED = "batch.retry_failed"
    EXPORT_DATASET = "dataset.export"
    DRAIN_WORKER = "worker.drain"
    RESUME_WORKER = "worker.resume"
    CREATE_KEY = "key.create"
    REVOKE_KEY = "key.revoke"
    ACCEPT_LICENCE = "licence.accept"
    SIGN_IN = "dashboard.sign_in"


def record(
    connection: Connection, caller: Caller, action: Action, subject: UUID | str | None = None, **detail: Any
) -> UUID:
    """Record an action; the id of the record. `detail` must be small and fit JSON."""
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
        },
    )
    return record_id


def extend(connection: Connection, record_id: UUID, **detail: Any) -> None:
    """Add to the detail of a record: an action may take several transactions."""
    connection.execute(EXTEND, {"id": record_id, "detail": json.dumps(detail, ensure_ascii=False, default=str)})


# Insert a record.
RECORD = text("""
    INSERT INTO audit (id, tenant_id, key_id, via, action, subject, detail, request_id)
    VALUES (:id, :tenant, :key, cast(:via AS via), :action, :subject, cast(:detail AS jsonb), :request)
""")

# Merge more detail into a record.
EXTEND = text("UPDATE audit SET detail = detail || cast(:detail AS jsonb) WHERE id = :id")
