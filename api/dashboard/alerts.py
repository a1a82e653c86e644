"""What an operator should look at, as codes with numbers. Knows no words; of a batch, only that of the own tenant."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from api.dashboard.queries.overview import Tally
from api.queries.fleet import Fleet
from common.enums import Tier
from common.queue.workers import IS_SILENT

SWEEP_SILENCE_S = 180  # longer than two samples are apart
TOO_MANY = 0.1  # of the images that ended
FEWEST = 5  # failures that are worth an alert
TOO_LONG_S = 60  # for an interactive job to wait


class AlertCode(StrEnum):
    """The worst first."""

    NO_CONTROL = "no_control"  # no control worker has swept for `seconds`
    NO_WORKER = "no_worker"  # `count` images of `model` wait, and no worker that is up serves it
    ALL_DRAINING = "all_draining"  # `count` images of `model` wait, and all who serve it are draining
    WORKER_SILENT = "worker_silent"  # nothing was heard of `worker` for `seconds`
    WORKER_LOST = "worker_lost"  # `worker` was given up within the last hour: it was last heard of `seconds` ago
    MODEL_REFUSED = "model_refused"  # `worker` refuses `model` for `reason`; `count` workers do
    FAILURES = "failures"  # `count` images of `model` failed in the last 15 minutes: `share` of those that ended
    INTERACTIVE_WAITS = "interactive_waits"  # `count` interactive images of `model` wait, the oldest for `seconds`
    BATCH_PAUSED = "batch_paused"  # `batch` paused by itself, for `reason`


@dataclass(frozen=True)
class Alert:
    code: AlertCode
    model: str | None = None
    worker: str | None = None
    batch_id: UUID | None = None
    batch: str | None = None  # its name
    count: int | None = None
    seconds: float | None = None
    share: float | None = None
    reason: str | None = None


def find_alerts(
    connection: Connection,
    tenant_id: UUID,
    backlog: Iterable[Row[Any]],
    crew: Fleet,
    tallies: Iterable[Tally],
    silence_s: float,
) -> Sequence[Alert]:
    """The worst first. What the screen has read already is not read again; a worker is silent after `silence_s`."""
    backlog = list(backlog)
    found = [
        *_of_control_workers(connection),
        *_of_workers(connection, silence_s),
        *_of_models(backlog, crew),
        *_of_refusals(crew),
        *_of_failures(tallies),
        *_of_interactive(backlog),
        *_of_batches(connection, tenant_id),
    ]
    order = list(AlertCode)
    return sorted(found, key=lambda alert: order.index(alert.code))


def _of_control_workers(connection: Connection) -> Iterable[Alert]:
    """Each of them takes samples; while nothing was ever submitted there are none to take."""
    silence = connection.execute(SWEEP_SILENCE).scalar()
    if silence is not None and silence > SWEEP_SILENCE_S:
        yield Alert(AlertCode.NO_CONTROL, seconds=silence)


def _of_workers(connection: Connection, silence_s: float) -> Iterable[Alert]:
    for row in connection.execute(SILENT, {"silence": silence_s}):
        code = AlertCode.WORKER_LOST if row.is_lost else AlertCode.WORKER_SILENT
        yield Alert(code, worker=row.name, seconds=row.seconds)


def _of_models(backlog: Iterable[Row[Any]], crew: Fleet) -> Iterable[Alert]:
    waiting = dict[str, int]()
    for row in backlog:
        waiting[row.model] = waiting.get(row.model, 0) + row.waiting
    for model, images in waiting.items():
        if images and (code := SERVICE.get(crew.waiting_reason(model, is_backing_off=False).code)):
            yield Alert(code, model=model, count=images)


def _of_refusals(crew: Fleet) -> Iterable[Alert]:
    refusing = dict[tuple[str, str], list[str]]()
    for member in crew.workers:
        for model, reason in member.refusals.items():
            refusing.setdefault((model, reason), []).append(member.name)
    for (model, reason), names in refusing.items():
        yield Alert(AlertCode.MODEL_REFUSED, model=model, worker=names[0], count=len(names), reason=reason)


def _of_failures(tallies: Iterable[Tally]) -> Iterable[Alert]:
    ended, failed = dict[str, int](), dict[str, int]()
    for tally in tallies:
        ended[tally.model] = ended.get(tally.model, 0) + tally.stored + tally.flagged + tally.failed
        failed[tally.model] = failed.get(tally.model, 0) + tally.failed
    for model, count in failed.items():
        if count >= FEWEST and count > TOO_MANY * ended[model]:
            yield Alert(AlertCode.FAILURES, model=model, count=count, share=count / ended[model])


def _of_interactive(backlog: Iterable[Row[Any]]) -> Iterable[Alert]:
    for row in backlog:
        if row.tier == Tier.INTERACTIVE and (row.oldest_s or 0) > TOO_LONG_S:
            yield Alert(AlertCode.INTERACTIVE_WAITS, model=row.model, count=row.waiting, seconds=row.oldest_s)


def _of_batches(connection: Connection, tenant_id: UUID) -> Iterable[Alert]:
    for row in connection.execute(PAUSED, {"tenant": tenant_id}):
        yield Alert(AlertCode.BATCH_PAUSED, batch_id=row.id, batch=row.name, reason=row.paused_because)


SERVICE = {
    "no_worker": AlertCode.NO_WORKER,
    "model_refused": AlertCode.NO_WORKER,
    "draining": AlertCode.ALL_DRAINING,
}

SWEEP_SILENCE = text("SELECT extract(epoch FROM now() - max(minute))::float FROM lane_samples")

SILENT = text(f"""
    SELECT name, state = 'stopped' AS is_lost, extract(epoch FROM now() - seen_at)::float AS seconds FROM workers
    WHERE state <> 'stopped' AND seen_at < now() - make_interval(secs => :silence)
        OR state = 'stopped' AND reason = '{IS_SILENT}' AND seen_at > now() - interval '1 hour'
    ORDER BY name, id
""")

PAUSED = text("""
    SELECT id, name, paused_because FROM batches
    WHERE tenant_id = :tenant AND finished_at IS NULL AND state = 'paused' AND paused_because IS NOT NULL
    ORDER BY id
""")
