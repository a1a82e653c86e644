"""The overview: the farm at a glance, and what an operator should look at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Row

from api.dashboard import charts
from api.dashboard.alerts import Alert, find_alerts
from api.dashboard.queries.workers import find_workers
from api.dashboard.sessions import TheVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.queries.fleet import read_fleet
from common.db import transaction
from common.enums import WorkerState
from common.queue.stats import DAY, HOUR, RECENT_MINUTES, Tally, read_backlog, read_chart, read_tallies

router = APIRouter()


@dataclass(frozen=True)
class Load:
    """What a model has to do in a tier, and what became of its images lately."""

    model: str
    tier: str
    waiting: int = 0
    running: int = 0
    images_per_minute: int = 0
    waits_since: datetime | None = None
    stored: int = 0
    flagged: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Concern:
    """An alert, and the moment from which its seconds count."""

    alert: Alert
    since: datetime | None


@view(router, "/", "overview.html")
def overview(farm: State, visitor: TheVisitor) -> Read:
    tenant_id, silence_s = visitor.caller.tenant_id, farm.settings.lease_s

    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            backlog, tallies = read_backlog(connection), read_tallies(connection)
            alerts = find_alerts(connection, tenant_id, backlog, read_fleet(connection), tallies, silence_s)
            loads = put_together(backlog, tallies)
            return {
                "loads": loads,
                "total": add_up(loads),
                "crew": [one for one in find_workers(connection, tenant_id) if one.state != WorkerState.STOPPED],
                "charts": [charts.draw(read_chart(connection, span), span) for span in (HOUR, DAY)],
                "concerns": [
                    Concern(alert, None if alert.seconds is None else moment_before(alert.seconds)) for alert in alerts
                ],
                "silence_s": silence_s,
                "minutes": RECENT_MINUTES,
            }

    return look


def put_together(backlog: Iterable[Row[Any]], tallies: Iterable[Tally]) -> list[Load]:
    """By model and tier: those with something to do, or with something done lately."""
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
        place = tally.model, tally.tier
        loads[place] = replace(
            loads.get(place, Load(*place)), stored=tally.stored, flagged=tally.flagged, failed=tally.failed
        )
    return [loads[place] for place in sorted(loads)]


def add_up(loads: Sequence[Load]) -> Load:
    counts = ("waiting", "running", "images_per_minute", "stored", "flagged", "failed")
    return Load(
        "",
        "",
        waits_since=min((one.waits_since for one in loads if one.waits_since), default=None),
        **{count: sum(getattr(one, count) for one in loads) for count in counts},
    )


def moment_before(seconds: float) -> datetime:
    """Pages tell moments: an age would change by itself, and the page be sent again each second."""
    return datetime.now(UTC) - timedelta(seconds=seconds)
