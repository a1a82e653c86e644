"""The overview: alerts, the load of each model and tier, charts, and the workers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Row

from api.dashboard import charts
from api.dashboard.alerts import find_alerts, find_own_alerts, moment_before
from api.dashboard.sessions import CurrentVisitor
from api.dashboard.view import Read, view
from api.dashboard.views.workers import find_workers
from api.deps import State
from api.queries.fleet import read_fleet
from api.services import limits
from common.db import transaction
from common.enums import WorkerState
from common.queue.stats import DAY, HOUR, RECENT_MINUTES, Tally, read_backlog, read_chart, read_tallies

router = APIRouter()


@dataclass(frozen=True)
class Load:
    """The images of a model and tier that wait and run now, and those that ended lately."""

    model: str
    tier: str
    waiting: int = 0
    running: int = 0
    images_per_minute: int = 0
    waits_since: datetime | None = None
    stored: int = 0
    flagged: int = 0
    failed: int = 0


@view(router, "/", "overview.html")
def overview(state: State, visitor: CurrentVisitor) -> Read:
    """Everybody sees the load of the farm; what is wrong with it, only who runs it."""
    tenant_id, silence_s, home = visitor.caller.tenant_id, state.settings.lease_s, state.settings.home

    def read() -> dict[str, Any]:
        with transaction(state.autocommit) as connection:
            backlog, tallies = read_backlog(connection), read_tallies(connection)
            loads = merge_loads(backlog, tallies)
            workers, fleet = find_workers(connection, tenant_id), read_fleet(connection)
            if visitor.runs_farm:
                alerts = find_alerts(connection, tenant_id, backlog, fleet, tallies, silence_s, home)
            else:
                alerts = find_own_alerts(connection, tenant_id)
            return {
                "loads": loads,
                "total": total_load(loads),
                "workers": [worker for worker in workers if worker.state != WorkerState.STOPPED],
                "charts": [charts.build_chart(read_chart(connection, span), span) for span in (HOUR, DAY)],
                "alerts": alerts,
                "silence_s": silence_s,
                "minutes": RECENT_MINUTES,
                "limits": limits.read_limited(state, visitor.caller),
            }

    return read


def merge_loads(backlog: Iterable[Row[Any]], tallies: Iterable[Tally]) -> list[Load]:
    """By model and tier: those that have images now or had some lately."""
    loads = {
        (row.model, row.tier): Load(
            row.model,
            row.tier,
            row.waiting,
            row.running,
            row.images_per_minute,
            waits_since=None if row.oldest_s is None else moment_before(row.oldest_s),
        )
        for row in backlog
    }
    for tally in tallies:
        key = tally.model, tally.tier
        load = loads.get(key, Load(*key))
        loads[key] = replace(load, stored=tally.stored, flagged=tally.flagged, failed=tally.failed)
    return [loads[key] for key in sorted(loads)]


def total_load(loads: Sequence[Load]) -> Load:
    counts = ("waiting", "running", "images_per_minute", "stored", "flagged", "failed")
    return Load(
        "",
        "",
        waits_since=min((load.waits_since for load in loads if load.waits_since), default=None),
        **{count: sum(getattr(load, count) for load in loads) for count in counts},
    )
