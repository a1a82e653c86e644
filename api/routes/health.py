"""Liveness, readiness and metrics over HTTP."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from api import sentence
from api.deps import AppState, State, is_public, require_public
from api.errors import RETRY_AFTER_S, Problem, problem
from api.schemas import example
from common.db import check_version, read_version, transaction
from common.errors import Error, FieldError, Unavailable, WrongFarm
from common.sentences import Sentence

router = APIRouter(tags=["health"])

CHECK_TIMEOUT_S = 0.8  # with it, readiness is answered within the second that most probes wait
CACHED_S = 1.0


class Alive(BaseModel):
    model_config = example({"status": "alive"})

    status: str


class Ready(BaseModel):
    model_config = example(
        {"status": "ready", "checks": {"postgres": "ok", "migrations": "ok", "redis": "ok", "s3": "ok", "farm": "ok"}}
    )

    status: str = Field(description="`ready`; `degraded` while submissions work, but Redis or the image store is away.")
    checks: dict[str, str] = Field(description="By service: `ok`, or what is wrong.")


@dataclass(frozen=True)
class Checked:
    """What each service lacked at that moment; None where nothing."""

    failures: Mapping[str, Sentence | None]
    at: float


class Readiness:
    """Checks the services in threads and with a connection of its own, so that a busy process is ready too.

    The result is kept for a second. A check that hangs is not begun anew.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._threads = ThreadPoolExecutor(len(CHECKS), "readiness")
        self._running: dict[str, asyncio.Future[None]] = {}
        self._checked: Checked | None = None
        self._checking = asyncio.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self) -> Checked:
        async with self._checking:
            if self._checked is None or time.monotonic() - self._checked.at > CACHED_S:
                results = await asyncio.gather(*map(self._check, CHECKS))
                self._checked = Checked(dict(zip(CHECKS, results, strict=True)), time.monotonic())
        return self._checked

    async def _check(self, name: str) -> Sentence | None:
        running = self._running.get(name)
        if running is None or running.done():
            running = asyncio.get_running_loop().run_in_executor(self._threads, CHECKS[name], self._state)
            self._running[name] = running
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await asyncio.shield(running)
        except TimeoutError:  # of a busy process: what was not looked at is not another farm's
            return self._state.farm.refusal if name == "farm" else sentence("check_timed_out")
        except Error as error:
            return error.message
        return None


@router.get("/healthz", operation_id="readHealth", summary="Is the process alive?", response_model=Alive)
async def read_health() -> Response:
    """Checks no other service."""
    return Response('{"status":"alive"}', media_type="application/json")


@router.get(
    "/metrics",
    operation_id="readMetrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    dependencies=[Depends(require_public("metrics"))],
)
def read_metrics(request: Request) -> Response:
    """Requests of this process; jobs, images and workers of the whole farm."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/readyz",
    operation_id="readReadiness",
    summary="Is the process ready?",
    response_model=Ready,
    responses={503: {"model": Problem, "description": "Postgres is unavailable, or of another version or farm."}},
)
async def read_readiness(state: State, request: Request) -> Response:
    """Whether Postgres answers and has a revision that this version accepts, and whether it, the bucket and the pepper
    are of one farm. `degraded` while Redis or the image store is away. Answered at once, from checks that are a second
    old at most.
    """
    checked = await request.app.state.readiness.read()
    wrong = [FieldError(name, failure) for name, failure in checked.failures.items() if failure]
    is_down = any(error.field in NEEDED for error in wrong)
    if not await is_public(request, state, "readiness"):
        checks, wrong = {}, []
    else:
        checks = {name: failure or "ok" for name, failure in checked.failures.items()}
    if is_down:
        detail = "; ".join(f"{error.field}: {error.message}" for error in wrong) or sentence("not_ready")
        return problem(request, 503, "not_ready", detail, wrong, {"Retry-After": str(RETRY_AFTER_S)}, checks=checks)
    status = "degraded" if any(checked.failures.values()) else "ready"
    return Response(Ready(status=status, checks=checks).model_dump_json(), media_type="application/json")


def check_postgres(state: AppState) -> None:
    with transaction(state.probe) as connection:
        connection.exec_driver_sql("SELECT 1")


def check_migrations(state: AppState) -> None:
    with transaction(state.probe) as connection:
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
    with suppress(WrongFarm):  # `check_farm` says so
        state.farm.ensure()
        state.storage.verify()


def check_farm(state: AppState) -> None:
    """What was wrong when the three were last compared: what cannot be reached now is not wrong."""
    if state.farm.refusal:
        raise WrongFarm(state.farm.refusal)


CHECKS: dict[str, Callable[[AppState], None]] = {
    "postgres": check_postgres,
    "migrations": check_migrations,
    "redis": check_redis,
    "s3": check_storage,
    "farm": check_farm,
}
NEEDED = ("postgres", "migrations", "farm")
