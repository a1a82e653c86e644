"""Metrics for Prometheus: requests, counted as they are answered, and the farm, read from the database per scrape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine, text
from starlette.types import Scope

from common.db import transaction
from common.errors import Unavailable
from common.queue.stats import read_backlog

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMetrics:
    """Requests by method, route and status. One object per application, so that two in one process do not mix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "huafang_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "huafang_http_request_seconds", "Time to answer.", ["method", "route"], registry=registry
        )

    def observe(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        # The route, not the path, and only known methods: clients must not be able to create series.
        route = scope.get("root_path", "") + path if (path := getattr(scope.get("route"), "path", "")) else "none"
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)


@dataclass(frozen=True)
class FarmMetrics(Collector):
    """Jobs, images and workers of the whole farm; while the database is unavailable, only that it is."""

    engine: Engine

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # no query before the first scrape

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("huafang_database_up", "Whether the database answers.")
        try:
            with transaction(self.engine) as connection:
                backlog = read_backlog(connection)
                jobs = connection.execute(OPEN_JOBS).all()
                workers = connection.execute(WORKERS).all()
        except Unavailable:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield gauge("jobs_open", "Jobs that have not ended.", ["state"], jobs)
        waiting = [(row.model, row.tier, row.waiting) for row in backlog]
        yield gauge("images_waiting", "Images that wait for a worker.", ["model", "tier"], waiting)
        running = [(row.model, row.tier, row.running) for row in backlog]
        yield gauge("images_running", "Images that are being rendered.", ["model", "tier"], running)
        yield gauge("workers", "Render workers.", ["state"], workers)


def gauge(name: str, meaning: str, labels: list[str], rows: Iterable[Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"huafang_{name}", meaning, labels=labels)
    for *values, number in rows:
        family.add_metric(values, number)
    return family


# The jobs that have not ended, by state.
OPEN_JOBS = text("SELECT state, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY state")

# The workers by state.
WORKERS = text("SELECT state, count(*) FROM workers GROUP BY state")
