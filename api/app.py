"""The application: what it is made of, and how it starts and stops. Routes are in `routes/`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

from anyio import CapacityLimiter
from anyio._backends._asyncio import CapacityLimiter as ThreadLimiter
from anyio._backends._asyncio import _default_thread_limiter as default_thread_limiter  # nothing public sets it
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic.json_schema import models_json_schema
from sqlalchemy import Engine

from api import sentence
from api.authentication import REGULARS, STRANGERS, Lookups
from api.bodies import Memory
from api.dashboard.app import OPEN_FORMS, create_dashboard
from api.deps import AppState
from api.errors import MEDIA_TYPE, Problem, add_handlers
from api.limits.requests import Requests
from api.live.job_watcher import JobWatcher
from api.live.turns import Turns
from api.metrics import FarmMetrics, RequestMetrics
from api.middleware import RequestMiddleware
from api.queries.jobs import JobVersion, find_changed, with_progress
from api.routes import (
    audit,
    batches,
    datasets,
    documentation,
    events,
    health,
    images,
    jobs,
    keys,
    limits,
    models,
    queue,
    tenants,
    uploads,
    usage,
    workers,
)
from api.schemas import Job, JobRequest
from api.services.batch_request import BatchRequest
from common.accounts.farm import Farm
from common.accounts.licences import Acceptances
from common.accounts.limits import Limits
from common.broker import Broker
from common.catalog import catalog
from common.config import Settings
from common.db import connect, transaction
from common.errors import Unavailable
from common.policy.policy import load
from common.storage import Storage

DASHBOARD = "/dashboard"
THREADS = 8  # requests that use the database at once: more only wait for each other
THUMBNAIL_THREADS = 4
UPLOAD_THREADS = 4
INLINE_THREADS = 2
CONVERSION_THREADS = 2
CONVERSION_WAIT_S = 30.0  # for an earlier file of the tenant
DRY_RUN_THREADS = 2
DRY_RUN_WAIT_S = 4.0  # for an earlier one of the tenant, which reads for three
DECODE_THREADS = 2  # of uploaded images: 20 bytes a pixel at worst
BODY_MEMORY = 64_000_000  # bytes of request bodies at once
SPARE_CONNECTIONS = 4  # for what runs beside requests: the job watcher's poll, uploads
QUEUE_S = 0.7  # a request waits for a thread so long, and again if another one has ended
POOL_TIMEOUT_S = 0.5  # and for a connection


class BoundedLimiter(ThreadLimiter):
    """The limit on request threads. A request waits for one as long as others end, as in a burst. It is refused where
    none ends, or none can: all connections are taken.
    """

    def __new__(cls, total_tokens: float, engine: Engine) -> "BoundedLimiter":
        return object.__new__(cls)  # anyio's takes no engine

    def __init__(self, total_tokens: float, engine: Engine) -> None:
        super().__init__(total_tokens)
        self._pool: Any = engine.pool
        self._ended = 0

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        while True:
            ended = self._ended
            try:
                async with asyncio.timeout(QUEUE_S):
                    return await super().acquire_on_behalf_of(borrower)
            except TimeoutError:
                if self._ended == ended or self._pool.checkedout() >= self._pool.size():
                    raise Unavailable(sentence("too_busy")) from None

    def release_on_behalf_of(self, borrower: object) -> None:
        super().release_on_behalf_of(borrower)
        self._ended += 1


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's description, with errors declared as the problems that they are."""
        if self.openapi_schema:
            return self.openapi_schema
        document = super().openapi()
        _, parsed_by_routes = models_json_schema(
            [(shape, "validation") for shape in (JobRequest, BatchRequest)], ref_template="#/components/schemas/{model}"
        )
        document["components"]["schemas"] = parsed_by_routes["$defs"] | document["components"]["schemas"]
        for operations in document["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if status[0] in "45":
                        response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        return document


def create_app(settings: Settings) -> FastAPI:
    """The API of the farm that these settings describe. Connects to nothing before the first request."""
    state = make_state(settings)
    app = Api(
        title="Huafang",
        summary="A render farm for Chinese text-to-image diffusion.",
        version="0.1.0",
        lifespan=lifespan,
        openapi_url=None,  # ours can be closed
        docs_url=None,  # ours asks no other host
        redoc_url=None,
        responses={
            "4XX": {"model": Problem, "description": "The request cannot be carried out as it is."},
            503: {"model": Problem, "description": "A service is unavailable; `Retry-After` says when to try again."},
            507: {"model": Problem, "description": "A disk of the farm is full; nothing of the request was kept."},
        },
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.shared = state
    app.state.readiness = health.Readiness(state)
    app.state.registry = CollectorRegistry()
    app.state.registry.register(FarmMetrics(state.autocommit))
    app.state.registry.register(state.lookups.failures.counter)
    rules = {uploads.PATH: uploads.body_rule(settings.upload_limit), batches.PATH: batches.BODY_RULE} | {
        f"{DASHBOARD}{path}": rule for path, rule in OPEN_FORMS.items()
    }
    metrics = RequestMetrics(app.state.registry)
    app.state.body_memory = Memory(BODY_MEMORY)
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        lookups=state.lookups,
        memory=app.state.body_memory,
        rules=rules,
        requests=state.requests,
        limits=state.limits,
    )
    add_handlers(app)
    for noun in (jobs, events, uploads, batches, datasets, images, models, queue, workers):
        app.include_router(noun.router)
    for noun in (tenants, keys, limits, usage, audit, health, documentation):
        app.include_router(noun.router)
    app.mount(documentation.ASSETS, documentation.assets)
    app.state.dashboard = create_dashboard(state)
    app.mount(DASHBOARD, app.state.dashboard)
    return app


def make_state(settings: Settings) -> AppState:
    connections = THREADS + SPARE_CONNECTIONS + REGULARS + STRANGERS
    engine = connect(settings, pool=connections, pool_timeout_s=POOL_TIMEOUT_S)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    broker = Broker(settings)
    models = catalog.read(settings.catalog, settings.model_store)
    probe, storage = connect(settings, pool=2, statement_timeout_s=2), Storage(settings)
    farm = Farm(probe, storage, settings.key_pepper.get_secret_value(), needs_pepper=True)
    farm.guard(engine, probe, storage)
    state = AppState(
        settings=settings,
        engine=engine,
        autocommit=autocommit,
        probe=probe,
        broker=broker,
        storage=storage,
        farm=farm,
        catalog=models,
        policy=load(settings.policy),
        lookups=Lookups(autocommit, settings.key_pepper.get_secret_value()),
        job_watcher=JobWatcher(
            settings.redis_url.get_secret_value(), read_changed=partial(read_changed, autocommit, broker)
        ),
        acceptances=Acceptances(autocommit),
        limits=Limits.in_settings(settings),
        requests=Requests(),
        upload_limiter=CapacityLimiter(UPLOAD_THREADS),
        inline_limiter=CapacityLimiter(INLINE_THREADS),
        conversion_limiter=CapacityLimiter(CONVERSION_THREADS),
        conversion_turns=Turns(CONVERSION_WAIT_S, sentence("conversion_in_progress")),
        dry_run_limiter=CapacityLimiter(DRY_RUN_THREADS),
        dry_run_turns=Turns(DRY_RUN_WAIT_S, sentence("dry_run_in_progress")),
        parse_limiter=CapacityLimiter(1),
        thumbnail_limiter=CapacityLimiter(THUMBNAIL_THREADS),
        decode_limiter=CapacityLimiter(DECODE_THREADS),
    )
    models.get(state.default_model)  # an unknown default is an error now, not at the first request
    return state


def read_changed(
    autocommit: Engine, broker: Broker, known: Mapping[UUID, JobVersion | None]
) -> dict[UUID, tuple[JobVersion, Job] | None]:
    """Those of these jobs whose version is another one than is known; None for one that was deleted."""
    with transaction(autocommit) as connection:
        found = find_changed(connection, known)
    with_progress(broker, [change[1] for change in found.values() if change])
    return found


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: AppState = app.state.shared
    default_thread_limiter.set(BoundedLimiter(THREADS, state.engine))
    state.job_watcher.open()
    yield
    await state.job_watcher.close()
    state.lookups.close()
    app.state.readiness.close()
    state.engine.dispose()
    state.probe.dispose()
