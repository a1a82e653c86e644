"""More work than the farm can begin: 503 within a second, and liveness and readiness are as ever."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from sqlalchemy import Engine, text

from api.routes.health import CHECKS
from tests.support.serving import PROMPT, Api


@contextmanager
def without_connections(api: Api) -> Iterator[None]:
    """All connections that requests use are taken."""
    engine: Engine = api.app.state.shared.engine
    with ExitStack() as taken:
        for _ in range(engine.pool.size()):  # type: ignore[attr-defined]
            taken.enter_context(engine.connect())
        yield


@contextmanager
def locked(database: Engine, table: str) -> Iterator[None]:
    """Every statement on this table waits."""
    with database.connect() as connection, connection.begin():
        connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        yield


def check_refused(answer: httpx.Response, seconds: float) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert seconds < 1.5  # a second, and what this machine adds


def timed(
    client: httpx.Client, method: str, path: str, body: dict[str, object] | None = None
) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = client.request(method, path, json=body or PROMPT if method == "POST" else None)
    return answer, time.monotonic() - started


def test_without_free_connections_requests_are_refused_at_once(api: Api, client: httpx.Client) -> None:
    assert client.get("/v1/jobs").status_code == 200
    with without_connections(api), ThreadPoolExecutor(40) as many:
        for answer in [many.submit(timed, client, "GET", "/v1/jobs") for _ in range(40)]:
            check_refused(*answer.result())
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs")):
            check_refused(*timed(client, method, path))
        alive, seconds = timed(client, "GET", "/healthz")
        assert (alive.status_code, seconds < 0.5) == (200, True)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert client.post("/v1/jobs", json=PROMPT).status_code == 201


def test_a_request_does_not_queue_for_threads_that_find_no_connection(api: Api) -> None:
    """Whoever has a key is refused earlier, where it is looked up; the metrics need none."""
    with without_connections(api), api.stranger() as stranger, ThreadPoolExecutor(60) as many:
        answers = list(many.map(lambda _: timed(stranger, "GET", "/metrics"), range(60)))
    refused = [answer for answer in answers if answer[0].status_code == 503]
    assert len(refused) >= 60 - 3 * 8, "threads are tried three times at most in a second"
    for one in refused:
        check_refused(*one)
    for answer, _ in answers:
        assert answer.status_code == 503 or "huafang_database_up 0.0" in answer.text


def test_a_request_does_not_queue_for_threads_that_wait(api: Api, client: httpx.Client) -> None:
    """More requests than threads wait for a lock; those that found none are refused, and who holds one is served."""
    with ThreadPoolExecutor(20) as many:
        with locked(api.database, "jobs"):
            asked = [many.submit(timed, client, "GET", "/v1/jobs") for _ in range(20)]
            deadline = time.monotonic() + 30
            while sum(one.done() for one in asked) < 12:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            alive, seconds = timed(client, "GET", "/healthz")
            assert (alive.status_code, seconds < 0.5) == (200, True)
            assert client.get("/readyz").json()["status"] == "ready"
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer[0].status_code == 503]
    assert len(refused) == 12
    for answer, seconds in refused:
        check_refused(answer, seconds)
    assert [answer.status_code for answer, _ in answers if answer.status_code != 503] == [200] * 8


def test_batches_with_prompts_leave_other_requests_their_threads(api: Api, client: httpx.Client) -> None:
    """More of them than there are threads cannot store their prompts; they wait for each other, and nobody for them."""
    limiter = api.app.state.shared.inline_limiter
    with ThreadPoolExecutor(12) as many, api.client("another") as other:
        with locked(api.database, "uploads"):
            batch = {"prompts": ["红色的圆形"]}
            asked = [many.submit(timed, client, "POST", "/v1/batches", batch) for _ in range(12)]
            deadline = time.monotonic() + 8
            while limiter.statistics().tasks_waiting < 12 - limiter.total_tokens:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for method, status in (("GET", 200), ("POST", 201)):
                answer, seconds = timed(other, method, "/v1/jobs")
                assert (answer.status_code, seconds < 1.5) == (status, True)
        assert {one.result(30)[0].status_code for one in asked} == {201}


def test_a_request_does_not_queue_for_lookups_that_wait(api: Api, client: httpx.Client) -> None:
    assert client.get("/v1/models").status_code == 200
    with ThreadPoolExecutor(10) as many, locked(api.database, "api_keys"):
        asked = [many.submit(timed, client, "GET", "/v1/models") for _ in range(10)]
        assert client.get("/healthz").status_code == 200
        for one in asked:
            check_refused(*one.result(30))
    assert client.get("/v1/models").status_code == 200


def test_readiness_is_checked_once_a_second(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[object] = []
    monkeypatch.setitem(CHECKS, "redis", checks.append)
    with api.stranger() as stranger, ThreadPoolExecutor(10) as many:
        answers = list(many.map(lambda _: stranger.get("/readyz").status_code, range(50)))
    assert (set(answers), len(checks) <= 3) == ({200}, True)


def test_a_check_that_hangs_is_not_begun_again_and_delays_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def hang(state: object) -> None:
        begun.append(state)
        time.sleep(4)

    monkeypatch.setitem(CHECKS, "s3", hang)
    with api.stranger() as stranger:
        for _ in range(2):
            answer, seconds = timed(stranger, "GET", "/readyz")
            assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
            assert answer.json()["checks"]["s3"] == "It did not answer in time."
            assert seconds < 1.5
            time.sleep(1.1)
    assert len(begun) == 1
