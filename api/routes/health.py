"""Liveness, readiness and metrics over HTTP."""

import asyncio
from collections.abc import Callable

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from api import sentence
from api.deps import AppState, State
from api.errors import RETRY_AFTER_S, Problem, problem
from api.schemas import example
from common.db import check_version, read_version, transaction
from common.errors import Error, FieldError, Unavailable
from common.sentences import Sentence

router = APIRouter(tags=["health"])

CHECK_TIMEOUT_S = 2.0


class Alive(BaseModel):
    model_config = example({"status": "alive"})

    status: str


class Ready(BaseModel):
    model_config = example(
        {"status": "ready", "checks": {"postgres": "ok", "migrations": "ok", "redis": "ok", "s3": "ok"}}
    )

    status: str
    checks: dict[str, str]


@router.get("/healthz", operation_id="readHealth", summary="Is the process alive?", response_model=Alive)
async def read_health() -> Response:
    """Checks no other service."""
    return Response('{"status":"alive"}', media_type="application/json")


@router.get("/metrics", operation_id="readMetrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
def read_metrics(request: Request) -> Response:
    """Requests of this process; jobs, images and workers of the whole farm."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/readyz",
    operation_id="readReadiness",
    summary="Is the process ready?",
    response_model=Ready,
    responses={503: {"model": Problem, "description": "Which service is unavailable."}},
)
async def read_readiness(state: State, request: Request) -> Response:
    """Postgres, its migrations, Redis and the image store, each within two seconds."""
    limiter = anyio.CapacityLimiter(len(CHECKS))  # of its own: a process whose threads are all busy is still ready
    results = await asyncio.gather(*(outcome(state, check, limiter) for check in CHECKS.values()))
    failures = dict(zip(CHECKS, results, strict=True))
    checks = {name: failure or "ok" for name, failure in failures.items()}
    wrong = [FieldError(name, failure) for name, failure in failures.items() if failure]
    if wrong:
        detail = "; ".join(f"{error.field}: {error.message}" for error in wrong)
        return problem(request, 503, "not_ready", detail, wrong, {"Retry-After": str(RETRY_AFTER_S)}, checks=checks)
    return Response(Ready(status="ready", checks=checks).model_dump_json(), media_type="application/json")


async def outcome(
    state: AppState, check: Callable[[AppState], None], limiter: anyio.CapacityLimiter
) -> Sentence | None:
    try:
        with anyio.fail_after(CHECK_TIMEOUT_S):
            await anyio.to_thread.run_sync(check, state, limiter=limiter, abandon_on_cancel=True)
    except TimeoutError:
        return sentence("check_timed_out")
    except Error as error:
        return error.message
    return None


def check_postgres(state: AppState) -> None:
    with transaction(state.autocommit) as connection:
        connection.exec_driver_sql("SELECT 1")


def check_migrations(state: AppState) -> None:
    with transaction(state.autocommit) as connection:
        version = read_version(connection)
    check_version(version)


def check_redis(state: AppState) -> None:
    policy = state.broker.eviction_policy()
    if policy is None:
        raise Unavailable(sentence("redis_down"))
    if policy != "noeviction":
        raise Unavailable(sentence("redis_evicts", policy=policy))


def check_storage(state: AppState) -> None:
    state.storage.check()


CHECKS: dict[str, Callable[[AppState], None]] = {
    "postgres": check_postgres,
    "migrations": check_migrations,
    "redis": check_redis,
    "s3": check_storage,
}
