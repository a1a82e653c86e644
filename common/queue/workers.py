"""Workers: which processes render, what they serve, and whether they are alive. Claims and leases are in `claims.py`.

register ──► starting ──► ready ──► draining ──► stopped
                            └────────────────────►┘        (said goodbye, or was not heard of: `prune`)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import WorkerState
from common.errors import NotFound

IS_SILENT = "it was not heard of any more"  # why a worker that was pruned has stopped


@dataclass(frozen=True)
class Worker:
    """What a worker says of itself at each beat."""

    id: UUID
    name: str
    worker_class: Mapping[str, Any]
    models: Sequence[str]
    resident: Sequence[str] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    seconds_per_image: Mapping[str, float] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HeartbeatReply:
    """What a beat is answered: the state that the farm wants the worker to be in and why, and the database's clock."""

    state: WorkerState
    reason: str | None
    now: datetime


def heartbeat(connection: Connection, worker: Worker, *, ready: bool) -> HeartbeatReply:
    """Say that this worker is alive and what it holds.

    The first beat registers it. Draining, once asked for, stays; a worker that was pruned by mistake comes back.
    """
    parameters = {
        "id": worker.id,
        "name": worker.name,
        "class": json.dumps(dict(worker.worker_class)),
        "models": list(worker.models),
        "resident": list(worker.resident),
        "refusals": json.dumps(dict(worker.refusals)),
        "seconds": json.dumps(dict(worker.seconds_per_image)),
        "capacity": json.dumps(dict(worker.capacity)),
        "state": WorkerState.READY if ready else WorkerState.STARTING,
    }
    row = connection.execute(HEARTBEAT, parameters).one()
    return HeartbeatReply(WorkerState(row.state), row.reason, row.now)


def drain(connection: Connection, worker_id: UUID, reason: str) -> None:
    """Ask a worker to finish what it holds and claim nothing more. Raises NotFound when no such worker is alive."""
    _set_state(connection, DRAIN, worker_id, reason)


def resume(connection: Connection, worker_id: UUID) -> None:
    """Let a draining worker claim again. Raises NotFound when no such worker is alive."""
    _set_state(connection, RESUME, worker_id, None)


def stop(connection: Connection, worker_id: UUID, reason: str) -> None:
    """Say that a worker has stopped."""
    connection.execute(STOP, {"id": worker_id, "reason": reason})


def prune(connection: Connection, silence_s: float) -> list[UUID]:
    """Mark workers as stopped that were not heard of for that long, and forget those that stopped a day ago."""
    connection.execute(FORGET)
    return list(connection.execute(PRUNE, {"silence": silence_s}).scalars())


def record_revision(connection: Connection, model: str, source: str, revision: str) -> str:
    """Record the hub revision that the first worker resolved for a model; the one that all workers use."""
    parameters = {"model": model, "source": source, "revision": revision}
    connection.execute(RECORD_REVISION, parameters)
    return str(connection.execute(READ_REVISION, parameters).scalar_one())


def recorded_revision(connection: Connection, model: str, source: str) -> str | None:
    """The revision that was recorded for a model from this source, if one was."""
    return connection.execute(READ_REVISION, {"model": model, "source": source}).scalar()


def record_capacity(connection: Connection, worker_class: str, model: str, images: int) -> int:
    """Record what the first worker of a class (a digest of it) found a model's capacity to be; what all of it use."""
    parameters = {"class": worker_class, "model": model, "images": images}
    connection.execute(RECORD_CAPACITY, parameters)
    return int(connection.execute(READ_CAPACITY, parameters).scalar_one())


def recorded_capacity(connection: Connection, worker_class: str, model: str) -> int | None:
    """The capacity that was recorded for a model on this class of workers, if one was."""
    return connection.execute(READ_CAPACITY, {"class": worker_class, "model": model}).scalar()


def _set_state(connection: Connection, statement: Any, worker_id: UUID, reason: str | None) -> None:
    if connection.execute(statement, {"id": worker_id, "reason": reason}).rowcount == 0:
        raise NotFound(f"There is no live worker {worker_id}.")


HEARTBEAT = text("""
    INSERT INTO workers AS old (id, name, class, models, resident, refusals, seconds_per_image, capacity,
                                state)
    VALUES (:id, :name, cast(:class AS jsonb), cast(:models AS text[]), cast(:resident AS text[]),
            cast(:refusals AS jsonb), cast(:seconds AS jsonb), cast(:capacity AS jsonb), cast(:state AS worker_state))
    ON CONFLICT (id) DO UPDATE SET
        models = excluded.models, resident = excluded.resident, refusals = excluded.refusals,
        seconds_per_image = excluded.seconds_per_image, capacity = excluded.capacity, seen_at = now(),
        state = CASE WHEN old.state = 'draining' THEN old.state ELSE excluded.state END,
        reason = CASE WHEN old.state = 'draining' THEN old.reason END
    RETURNING state, reason, clock_timestamp() AS now
""")

DRAIN = text("UPDATE workers SET state = 'draining', reason = :reason WHERE id = :id AND state <> 'stopped'")

RESUME = text("UPDATE workers SET state = 'ready', reason = :reason WHERE id = :id AND state <> 'stopped'")

STOP = text("UPDATE workers SET state = 'stopped', reason = :reason, seen_at = now() WHERE id = :id")

PRUNE = text(f"""
    UPDATE workers SET state = 'stopped', reason = '{IS_SILENT}'
    WHERE state <> 'stopped' AND seen_at < now() - make_interval(secs => :silence) RETURNING id
""")

FORGET = text("DELETE FROM workers WHERE state = 'stopped' AND seen_at < now() - interval '1 day'")

RECORD_REVISION = text("""
    INSERT INTO revisions (model, source, revision) VALUES (:model, :source, :revision)
    ON CONFLICT (model) DO UPDATE SET source = excluded.source, revision = excluded.revision, recorded_at = now()
        WHERE revisions.source <> excluded.source
""")

READ_REVISION = text("SELECT revision FROM revisions WHERE model = :model AND source = :source")

RECORD_CAPACITY = text("""
    INSERT INTO batch_sizes (worker_class, model, images) VALUES (:class, :model, :images) ON CONFLICT DO NOTHING
""")

READ_CAPACITY = text("SELECT images FROM batch_sizes WHERE worker_class = :class AND model = :model")
