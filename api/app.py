"""The API as one object: which parts it is made of, and how they start and stop. Routes are in `routes/`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import anyio.to_thread
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from api.dashboard.app import create_dashboard
from api.deps import AppState
from api.errors import MEDIA_TYPE, Problem, add_handlers
from api.live.job_watcher import JobWatcher
from api.metrics import FarmMetrics, RequestMetrics
from api.middleware import RequestMiddleware
from api.queries.jobs import Mark, find_changed, with_progress
from api.routes import (
    batches,
    datasets,
    documentation,
    events,
    health,
    images,
    jobs,
    keys,
    models,
    queue,
    uploads,
    workers,
)
from api.schemas import Job
from common.accounts.licences import Acceptances
from common.broker import Broker
from common.catalog import catalog
from common.config import Settings
from common.db import connect, transaction
from common.storage import Storage

DASHBOARD = "/dashboard"
THREADS = 8  # requests at work in the database at once: more only wait for each other
THUMBNAIL_THREADS = 4
UPLOAD_THREADS = 4
PICTURE_THREADS = 2  # decode what was uploaded: 20 bytes a pixel at worst
SPARE_CONNECTIONS = 4  # for what works beside them: the waiting room's poll, readiness


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's description, with errors declared as the problems that they are."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if status[0] in "45":
                        response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        return document


def create_app(settings: Settings) -> FastAPI:
    """The API of the farm that these settings describe. Connects to nothing before the first request."""
    farm = make_farm(settings)
    app = Api(
        title="Huafang",
        summary="A render farm for Chinese text-to-image diffusion.",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,  # ours asks no other host
        redoc_url=None,
        responses={
            "4XX": {"model": Problem, "description": "The request cannot be carried out as it is."},
            503: {"model": Problem, "description": "A service is away; `Retry-After` says when to try again."},
        },
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.farm = farm
    app.state.thumbnail_limiter = anyio.CapacityLimiter(THUMBNAIL_THREADS)
    app.state.registry = CollectorRegistry()
    app.state.registry.register(FarmMetrics(farm.autocommit))
    app.state.upload_limiter = anyio.CapacityLimiter(UPLOAD_THREADS)
    app.state.picture_limiter = anyio.CapacityLimiter(PICTURE_THREADS)
    limits = {uploads.PATH: settings.upload_limit, batches.PATH: batches.MAX_BODY_BYTES}
    app.add_middleware(RequestMiddleware, metrics=RequestMetrics(app.state.registry), limits=limits)
    add_handlers(app)
    for noun in (jobs, events, uploads, batches, datasets, images, models, queue, workers, keys, health, documentation):
        app.include_router(noun.router)
    app.mount(documentation.ASSETS, documentation.assets)
    app.state.dashboard = create_dashboard(farm, thumbnail_limiter=app.state.thumbnail_limiter)
    app.mount(DASHBOARD, app.state.dashboard)
    return app


def make_farm(settings: Settings) -> AppState:
    engine = connect(settings, pool=THREADS + SPARE_CONNECTIONS)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    messages = Broker(settings)
    known = catalog.read(settings.catalog, settings.model_store)
    farm = AppState(
        settings=settings,
        engine=engine,
        autocommit=autocommit,
        messages=messages,
        storage=Storage(settings),
        catalog=known,
        waiting_room=JobWatcher(settings.redis_url.get_secret_value(), look=partial(look, autocommit, messages)),
        acceptances=Acceptances(autocommit),
    )
    known.get(farm.default_model)  # a default that the catalogue lacks is said now, not at the first request
    return farm


def look(autocommit: Engine, messages: Broker, known: Mapping[UUID, Mark | None]) -> dict[UUID, tuple[Mark, Job]]:
    """Those of these jobs that are not as they are known."""
    with transaction(autocommit) as connection:
        found = find_changed(connection, known)
    with_progress(messages, [job for _, job in found.values()])
    return found


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    farm: AppState = app.state.farm
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    farm.waiting_room.open()
    yield
    await farm.waiting_room.close()
    farm.engine.dispose()
