"""What needs attention, as sentences: an operator's, what is wrong with the farm; a tenant's, its batches, datasets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from api.dashboard import sentence
from api.queries.fleet import Fleet
from common import failures
from common.disks import full_disks
from common.enums import Tier
from common.queue.stats import Tally
from common.queue.workers import IS_SILENT
from common.sentences import Sentence

SWEEP_SILENCE_S = 180  # longer than the time between two samples
FAILURE_SHARE = 0.1  # of the images that ended: more is an alert
MIN_FAILURES = 5  # fewer are no alert
INTERACTIVE_WAIT_S = 60  # a longer wait is an alert
SHOWN_GIVEN_UP = 5  # batches, and datasets

# The codes of the alerts, the most severe first.
SEVERITY = (
    "data_disk_full",
    "no_control",
    "step_fails",
    "step_fails_at_row",
    "no_worker",
    "all_quarantined",
    "worker_quarantined",
    "all_draining",
    "worker_silent",
    "worker_lost",
    "model_refused",
    "failures",
    "log_disk_full",
    "interactive_waits",
    "batch_given_up",
    "dataset_given_up",
    "batch_paused",
)


@dataclass(frozen=True)
class Alert:
    """`since` among the parameters of the sentence is a moment."""

    sentence: Sentence
    batch_id: UUID | None = None
    dataset_id: UUID | None = None


def find_alerts(
    connection: Connection,
    tenant_id: UUID,
    backlog: Iterable[Row[Any]],
    fleet: Fleet,
    tallies: Iterable[Tally],
    silence_s: float,
    home: Path,
) -> Sequence[Alert]:
    """What is wrong with the farm, and with the tenant's own batches, the most severe first.

    `backlog`, `fleet` and `tallies`: as the view has read them. A worker is silent after `silence_s` seconds without a
    heartbeat. `home`: of the local farm, if this is one.
    """
    backlog = list(backlog)
    found = [
        *_of_disks(home),
        *_of_control_workers(connection),
        *_of_steps(connection),
        *_of_quarantines(connection),
        *_of_workers(connection, silence_s),
        *_of_models(backlog, fleet),
        *_of_refusals(fleet),
        *_of_failures(tallies),
        *_of_interactive(backlog),
        *_of_batches(connection, tenant_id),
    ]
    return by_severity(found)


def find_own_alerts(connection: Connection, tenant_id: UUID) -> Sequence[Alert]:
    """What a tenant can do something about, the most severe first."""
    return by_severity(_of_batches(connection, tenant_id))


def by_severity(found: Iterable[Alert]) -> Sequence[Alert]:
    return sorted(found, key=lambda alert: SEVERITY.index(alert.sentence.code))


def moment_before(seconds: float) -> datetime:
    """Pages show moments, not ages: an age changes every second, and the page would be sent again each time."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def _of_disks(home: Path) -> Iterable[Alert]:
    for disk in full_disks(home):
        if disk.has_data:
            yield Alert(sentence("data_disk_full", folder=disk.folder))
        else:
            yield Alert(sentence("log_disk_full", folder=disk.folder))


def _of_control_workers(connection: Connection) -> Iterable[Alert]:
    """Every control worker takes samples. There are none before the first job."""
    last = connection.execute(SWEEP_SILENCE, {"silence": SWEEP_SILENCE_S}).scalar()
    if last is not None:
        yield Alert(sentence("no_control", since=last))


def _of_steps(connection: Connection) -> Iterable[Alert]:
    for at in failures.lasting(connection):
        step, row, count, since, reference = at.step, at.subject, at.failures, at.since, at.reference
        if row:
            yield Alert(
                sentence("step_fails_at_row", step=step, row=row, count=count, since=since, reference=reference)
            )
        else:
            yield Alert(sentence("step_fails", step=step, count=count, since=since, reference=reference))


def _of_workers(connection: Connection, silence_s: float) -> Iterable[Alert]:
    for row in connection.execute(SILENT_WORKERS, {"silence": silence_s}):
        if row.is_lost:
            yield Alert(sentence("worker_lost", worker=row.name, since=row.seen_at))
        else:
            yield Alert(sentence("worker_silent", worker=row.name, since=row.seen_at))


def _of_quarantines(connection: Connection) -> Iterable[Alert]:
    for row in connection.execute(QUARANTINED_WORKERS):
        since, reason = row.quarantined_at, row.reason
        yield Alert(sentence("worker_quarantined", worker=row.name, since=since, reason=reason))


def _of_models(backlog: Iterable[Row[Any]], fleet: Fleet) -> Iterable[Alert]:
    waiting = dict[str, int]()
    for row in backlog:
        waiting[row.model] = waiting.get(row.model, 0) + row.waiting
    for model, count in waiting.items():
        if not count:
            continue
        reason = fleet.waiting_reason(model, is_backing_off=False).code
        if reason in ("no_worker", "model_refused"):
            yield Alert(sentence("no_worker", model=model, count=count))
        elif reason == "workers_quarantined":
            yield Alert(sentence("all_quarantined", model=model, count=count))
        elif reason == "draining":
            yield Alert(sentence("all_draining", model=model, count=count))


def _of_refusals(fleet: Fleet) -> Iterable[Alert]:
    refusing = dict[tuple[str, str], list[str]]()
    for worker in fleet.workers:
        for model, reason in worker.refusals.items():
            refusing.setdefault((model, reason), []).append(worker.name)
    for (model, reason), names in refusing.items():
        yield Alert(sentence("model_refused", model=model, worker=names[0], count=len(names), reason=reason))


def _of_failures(tallies: Iterable[Tally]) -> Iterable[Alert]:
    ended, failed = dict[str, int](), dict[str, int]()
    for tally in tallies:
        ended[tally.model] = ended.get(tally.model, 0) + tally.stored + tally.flagged + tally.failed
        failed[tally.model] = failed.get(tally.model, 0) + tally.failed
    for model, count in failed.items():
        share = count / max(ended[model], 1)
        if count >= MIN_FAILURES and share > FAILURE_SHARE:
            yield Alert(sentence("failures", model=model, count=count, share=f"{share:.0%}"))


def _of_interactive(backlog: Iterable[Row[Any]]) -> Iterable[Alert]:
    for row in backlog:
        if row.tier == Tier.INTERACTIVE and (row.oldest_s or 0) > INTERACTIVE_WAIT_S:
            since = moment_before(row.oldest_s)
            yield Alert(sentence("interactive_waits", model=row.model, count=row.waiting, since=since))


def _of_batches(connection: Connection, tenant_id: UUID) -> Iterable[Alert]:
    for row in connection.execute(PAUSED_BATCHES, {"tenant": tenant_id}):
        paused = sentence("batch_paused", batch=row.name or row.id, reason=row.paused_because)
        yield Alert(paused, batch_id=row.id)
    for row in connection.execute(BATCHES_GIVEN_UP, {"tenant": tenant_id}):
        yield Alert(sentence("batch_given_up", batch=row.name or row.id, reason=row.error_message), batch_id=row.id)
    for row in connection.execute(DATASETS_GIVEN_UP, {"tenant": tenant_id}):
        yield Alert(sentence("dataset_given_up", dataset=row.id, reason=row.error_message), dataset_id=row.id)


# Read the time of the last sample, if it is too long ago.
SWEEP_SILENCE = text("""
    SELECT max(minute) FROM lane_samples HAVING max(minute) < now() - make_interval(secs => :silence)
""")

# Find the workers that are silent, and those removed for it within the last hour.
SILENT_WORKERS = text(f"""
    SELECT name, state = 'stopped' AS is_lost, seen_at FROM workers
    WHERE state <> 'stopped' AND seen_at < now() - make_interval(secs => :silence)
        OR state = 'stopped' AND reason = '{IS_SILENT}' AND seen_at > now() - interval '1 hour'
    ORDER BY name, id
""")

# Find the quarantines of workers that ran within the last day.
QUARANTINED_WORKERS = text("""
    SELECT name, quarantined_at, reason FROM quarantines
    WHERE EXISTS (SELECT FROM workers WHERE workers.name = quarantines.name) ORDER BY name
""")

# Find a tenant's batches that a stop rule has paused.
PAUSED_BATCHES = text("""
    SELECT id, name, paused_because FROM batches
    WHERE tenant_id = :tenant AND finished_at IS NULL AND deleted_at IS NULL AND state = 'paused'
        AND paused_because IS NOT NULL
    ORDER BY id
""")

# Find a tenant's batches that were given up for an unforeseen reason within the last day, or are still to be settled.
# The condition of a partial index.
BATCHES_GIVEN_UP = text(f"""
    SELECT id, name, error_message FROM batches
    WHERE tenant_id = :tenant AND error_code = '{failures.INTERNAL_ERROR}' AND deleted_at IS NULL
        AND (finished_at IS NULL OR coalesce(cancelled_at, finished_at) > now() - interval '1 day')
    ORDER BY id DESC LIMIT {SHOWN_GIVEN_UP}
""")

# The same of datasets.
DATASETS_GIVEN_UP = text(f"""
    SELECT id, error_message FROM datasets
    WHERE tenant_id = :tenant AND error_code = '{failures.INTERNAL_ERROR}' AND finished_at > now() - interval '1 day'
    ORDER BY id DESC LIMIT {SHOWN_GIVEN_UP}
""")
