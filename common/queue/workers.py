"""Workers: which processes render, what they serve, and whether they are alive. Their leases are in `leases`.

    heartbeat ──► starting ──► ready ──► draining ──► stopped
                      └──────────┴──────────┴───────────►┘        (`stop`; or `prune`, after silence)

Also what the first worker finds for all others: the revision of a model, and how many images one call renders.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import WorkerState
from common.errors import NotFound
from common.queue import sentence

IS_SILENT = sentence("worker_silent")  # the reason of a pruned worker


class Load(NamedTuple):
    """How long a model took to load. The first load of a process takes longer: it imports the libraries too."""

    seconds: float
    is_first: bool = False


@dataclass(frozen=True)
class Worker:
    """What a worker reports with each heartbeat.

    By model: `refusals` says why it refuses it, `capacity` how many images one pipeline call renders,
    `loads` how its last load went, `picture_classes` which weights and which class its pictures have
    (`common.recipes.picture_key`).
    """

    id: UUID
    name: str
    worker_class: Mapping[str, Any]
    models: Sequence[str]
    resident: Sequence[str] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    seconds_per_image: Mapping[str, float] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    cannot_store_s: float | None = None  # for how long it has tried to store an image; None: it can, or has not tried
    devices: Sequence[Mapping[str, Any]] = ()  # how they do: see `worker.devices.readings.DeviceStatus`
    loads: Mapping[str, Load] = field(default_factory=dict)
    picture_classes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # model → {weights, class}


@dataclass(frozen=True)
class HeartbeatReply:
    """The state that the worker should be in, and the database's time."""

    state: WorkerState
    now: datetime


@dataclass(frozen=True)
class Storing:
    """Whether another worker can store what this one renders, and whether another one says that it cannot store."""

    others_can: bool
    others_cannot: bool


def heartbeat(connection: Connection, worker: Worker, *, ready: bool) -> HeartbeatReply:
    """Record that a worker is alive, and what it reports. The first heartbeat registers it.

    A draining worker stays draining. A worker that was pruned by mistake is ready again.
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
        "loads": json.dumps({model: load._asdict() for model, load in worker.loads.items()}),
        "cannot_store_s": worker.cannot_store_s,
        "devices": json.dumps([dict(device) for device in worker.devices]),
        "pictures": json.dumps(dict(worker.picture_classes)),
        "state": WorkerState.READY if ready else WorkerState.STARTING,
    }
    row = connection.execute(HEARTBEAT, parameters).one()
    return HeartbeatReply(WorkerState(row.state), row.now)


def drain(connection: Connection, worker_id: UUID, reason: str) -> None:
    """Let a worker finish its leases and claim nothing more. Raises NotFound unless it is alive."""
    _set_state(connection, DRAIN, worker_id, reason)


def resume(connection: Connection, worker_id: UUID) -> None:
    """Let a draining worker claim again. Raises NotFound unless it is alive."""
    _set_state(connection, RESUME, worker_id, None)


def stop(connection: Connection, worker_id: UUID, reason: str) -> None:
    """Record that a worker has stopped."""
    connection.execute(STOP, {"id": worker_id, "reason": reason})


def prune(connection: Connection, silence_s: float) -> list[UUID]:
    """Mark workers as stopped that have been silent for that long; their ids."""
    return list(connection.execute(PRUNE, {"silence": silence_s}).scalars())


def storing(connection: Connection, worker_id: UUID, models: Sequence[str], silence_s: float) -> Storing:
    """How others fare with the image store; `models` are those that they would have to render in place of this one."""
    parameters = {"id": worker_id, "models": list(models), "silence": silence_s}
    row = connection.execute(STORING, parameters).one()
    return Storing(others_can=row.can, others_cannot=row.cannot)


def record_revision(connection: Connection, model: str, source: str, revision: str) -> str:
    """Record the hub revision of a model, unless a worker was faster; the revision that all workers use."""
    parameters = {"model": model, "source": source, "revision": revision}
    connection.execute(RECORD_REVISION, parameters)
    return str(connection.execute(READ_REVISION, parameters).scalar_one())


def recorded_revision(connection: Connection, model: str, source: str) -> str | None:
    """None: no worker has recorded one for this source."""
    return connection.execute(READ_REVISION, {"model": model, "source": source}).scalar()


def record_batch_size(connection: Connection, worker_class: str, model: str, images: int) -> int:
    """Record how many images one call renders, unless a worker of this class (its digest) was faster; what all use."""
    parameters = {"class": worker_class, "model": model, "images": images}
    connection.execute(RECORD_BATCH_SIZE, parameters)
    return int(connection.execute(READ_BATCH_SIZE, parameters).scalar_one())


def recorded_batch_size(connection: Connection, worker_class: str, model: str) -> int | None:
    """None: no worker of this class has recorded one."""
    return connection.execute(READ_BATCH_SIZE, {"class": worker_class, "model": model}).scalar()


def _set_state(connection: Connection, statement: Any, worker_id: UUID, reason: str | None) -> None:
    if connection.execute(statement, {"id": worker_id, "reason": reason}).rowcount == 0:
        raise NotFound(sentence("worker_unknown", worker=worker_id))


# Inserts a worker, or updates what it reports.
HEARTBEAT = text("""
    INSERT INTO workers AS old (id, name, class, models, resident, refusals, seconds_per_image, capacity,
                                loads, cannot_store_since, device_status, picture_classes, state)
    VALUES (:id, :name, cast(:class AS jsonb), cast(:models AS text[]), cast(:resident AS text[]),
            cast(:refusals AS jsonb), cast(:seconds AS jsonb), cast(:capacity AS jsonb), cast(:loads AS jsonb),
            now() - make_interval(secs => :cannot_store_s), cast(:devices AS jsonb), cast(:pictures AS jsonb),
            cast(:state AS worker_state))
    ON CONFLICT (id) DO UPDATE SET
        cannot_store_since = CASE WHEN excluded.cannot_store_since IS NOT NULL
            THEN coalesce(old.cannot_store_since, excluded.cannot_store_since) END,
        models = excluded.models, resident = excluded.resident, refusals = excluded.refusals,
        seconds_per_image = excluded.seconds_per_image, capacity = excluded.capacity,
        loads = excluded.loads, device_status = excluded.device_status, picture_classes = excluded.picture_classes,
        seen_at = now(),
        state = CASE WHEN old.state = 'draining' THEN old.state ELSE excluded.state END,
        reason = CASE WHEN old.state = 'draining' THEN old.reason END
    RETURNING state, clock_timestamp() AS now
""")

# Finds whether other workers can store. One that is quarantined would render nothing.
STORING = text("""
    SELECT coalesce(bool_or(cannot_store_since IS NULL AND models @> cast(:models AS text[])), false) AS can,
           coalesce(bool_or(cannot_store_since IS NOT NULL), false) AS cannot
    FROM workers
    WHERE id <> :id AND state = 'ready' AND seen_at > now() - make_interval(secs => :silence)
        AND NOT EXISTS (SELECT FROM quarantines WHERE quarantines.name = workers.name)
""")

# Drains a live worker.
DRAIN = text("UPDATE workers SET state = 'draining', reason = :reason WHERE id = :id AND state <> 'stopped'")

# Makes a live worker ready.
RESUME = text("UPDATE workers SET state = 'ready', reason = :reason WHERE id = :id AND state <> 'stopped'")

# Stops a worker.
STOP = text("UPDATE workers SET state = 'stopped', reason = :reason, seen_at = now() WHERE id = :id")

# Stops silent workers.
PRUNE = text(f"""
    UPDATE workers SET state = 'stopped', reason = '{IS_SILENT}'
    WHERE state <> 'stopped' AND seen_at < now() - make_interval(secs => :silence) RETURNING id
""")

# Inserts the revision of a model, or replaces that of another source.
RECORD_REVISION = text("""
    INSERT INTO revisions (model, source, revision) VALUES (:model, :source, :revision)
    ON CONFLICT (model) DO UPDATE SET source = excluded.source, revision = excluded.revision, recorded_at = now()
        WHERE revisions.source <> excluded.source
""")

# Reads the revision of a model.
READ_REVISION = text("SELECT revision FROM revisions WHERE model = :model AND source = :source")

# Inserts a batch size, unless there is one.
RECORD_BATCH_SIZE = text("""
    INSERT INTO batch_sizes (worker_class, model, images) VALUES (:class, :model, :images) ON CONFLICT DO NOTHING
""")

# Reads a batch size.
READ_BATCH_SIZE = text("SELECT images FROM batch_sizes WHERE worker_class = :class AND model = :model")
