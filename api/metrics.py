"""Requests, counted as they pass. What Prometheus is shown of the farm itself is in `routes/health.py`."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import Scope


class RequestMetrics:
    """By method, route and status. One object an application, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "huafang_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "huafang_http_request_seconds", "Time to answer.", ["method", "route"], registry=self.registry
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        # The route, not the path: one series, however many jobs there are. Clients may invent methods, too.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
