"""The audit: who did what, by which key and way, in which request. Kept for a year, and changed by nobody.

Written in the transaction of the deed, so there is none without its note and no note without its deed. Submitted jobs
are not noted: they are rows themselves.
"""

import json
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.tenants import Caller
from common.db import new_id


class Action(StrEnum):
    """What was done; the subject is what it was done to."""

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
    """Note that somebody did something; the note's id. `detail`: what JSON can say, in a few words."""
    note_id = new_id()
    connection.execute(
        RECORD,
        {
            "id": note_id,
            "tenant": caller.tenant_id,
            "key": caller.key_id,
            "via": caller.via.value,
            "action": action.value,
            "subject": None if subject is None else str(subject),
            "detail": json.dumps(detail, ensure_ascii=False, default=str),
            "request": caller.request_id,
        },
    )
    return note_id


def extend(connection: Connection, note_id: UUID, **detail: Any) -> None:
    """Bring the detail of a note up to date: a deed may take several transactions."""
    connection.execute(EXTEND, {"id": note_id, "detail": json.dumps(detail, ensure_ascii=False, default=str)})


def forget(connection: Connection, days: float) -> int:
    """Forget what was done longer ago than that; how much."""
    return connection.execute(FORGET, {"days": days}).rowcount


RECORD = text("""
    INSERT INTO audit (id, tenant_id, key_id, via, action, subject, detail, request_id)
    VALUES (:id, :tenant, :key, cast(:via AS via), :action, :subject, cast(:detail AS jsonb), :request)
""")

EXTEND = text("UPDATE audit SET detail = detail || cast(:detail AS jsonb) WHERE id = :id")

FORGET = text("DELETE FROM audit WHERE at < now() - make_interval(secs => 86400 * cast(:days AS double precision))")
