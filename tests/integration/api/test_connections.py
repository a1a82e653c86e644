"""Heads, bodies and connections that take more than their share, or do not come to an end."""

import gzip
import json
import time

import httpx
import pytest

from api import bodies, protocol
from tests.support.raw_http import JSON, RawConnection, authorization, raw_connection
from tests.support.serving import PROMPT, Api

LINE = b'{"prompt": "red"}\n'


def test_a_head_that_does_not_end_is_given_up(raw: RawConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    raw.request("GET", "/healthz")
    assert raw.response().read()
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: ")
    answer = raw.response()
    assert (answer.status, answer.headers["Content-Type"]) == (408, "application/problem+json")
    assert json.loads(answer.read())["code"] == "timeout"
    assert raw.is_closed()


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    with raw_connection(api.url) as raw:
        raw.send(sent)
        assert raw.is_closed()


def test_an_idle_connection_is_closed_by_the_client_first(api: Api) -> None:
    """If the server did, it could lose a request that is on its way."""
    of_clients, of_proxies = httpx.Limits().keepalive_expiry, 60
    assert api.server.config.timeout_keep_alive > max(of_clients or 0, of_proxies)


@pytest.mark.parametrize("length", [10, 3 * protocol.PROGRESS_BYTES], ids=["at once", "after a good beginning"])
def test_a_body_that_stalls_is_given_up(
    client: httpx.Client, raw: RawConnection, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(protocol, "PROGRESS_S", 0.3)
    begun = b'{"prompt": "' + b"x" * length
    raw.request("POST", "/v1/jobs", authorization(client), JSON, "Content-Length: 100000", body=begun)
    assert raw.response().status == 408
    assert raw.is_closed()


def test_a_slow_upload_at_a_fair_rate_arrives(
    client: httpx.Client, raw: RawConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PROGRESS_S", 0.3)
    monkeypatch.setattr(protocol, "PROGRESS_BYTES", len(LINE))
    size = f"Content-Length: {20 * len(LINE)}"
    raw.request("POST", "/v1/uploads", authorization(client), "Content-Type: application/jsonl", size)
    for _ in range(20):
        raw.send(LINE)
        time.sleep(0.06)
    assert raw.response().status == 201


@pytest.mark.parametrize("head", [b"X-Long: " + b"x" * 70_000, b"X-Some: thing\r\n" * 7_000], ids=["long", "many"])
def test_a_head_without_end_is_refused(raw: RawConnection, head: bytes) -> None:
    raw.send(b"GET /healthz HTTP/1.1\r\n" + head)
    answer = raw.response()
    assert (answer.status, json.loads(answer.read())["code"]) == (431, "head_too_large")
    raw.connection.shutdown(1)
    assert raw.is_closed()


@pytest.mark.parametrize(
    "headers", [[f"X-{n}: x" for n in range(120)], ["X-Long: " + "x" * 40_000]], ids=["many", "long"]
)
def test_a_complete_head_that_is_too_large_is_refused(raw: RawConnection, headers: list[str]) -> None:
    raw.request("GET", "/healthz", *headers)
    answer = raw.response()
    assert (answer.status, json.loads(answer.read())["code"]) == (431, "head_too_large")


def test_what_is_no_http_is_a_problem_too(raw: RawConnection) -> None:
    raw.send(b"\x16\x03\x01 hello\r\n\r\n")
    answer = raw.response()
    assert (answer.status, json.loads(answer.read())["code"]) == (400, "not_http")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_of_too_many_idle_connections_the_oldest_is_closed(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.post("/v1/jobs", json=PROMPT).json()["id"]
    monkeypatch.setattr(protocol, "MAX_WAITING", 3)
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        events = stream.iter_lines()
        assert next(events).startswith("retry")
        with (
            raw_connection(api.url, timeout=5) as first,
            raw_connection(api.url),
            raw_connection(api.url),
            raw_connection(api.url) as last,
        ):
            assert first.is_closed()  # before its head is late
            last.request("GET", "/healthz")
            assert last.response().status == 200
        client.post(f"/v1/jobs/{job}/cancel")
        assert any("cancelled" in line for line in events)


def test_more_connections_than_files_are_answered(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "most_connections", lambda: 1)
    with raw_connection(api.url) as first, raw_connection(api.url) as second:
        answer = second.response()
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        first.request("GET", "/healthz")
        assert first.response().status == 200


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    body = gzip.compress(json.dumps(PROMPT).encode())
    answer = client.post("/v1/jobs", content=body, headers={"Content-Encoding": "gzip", **json_type()})
    assert (answer.status_code, answer.json()["code"]) == (415, "encoding_unsupported")
    assert answer.headers["Accept-Encoding"] == "identity"
    same = client.post("/v1/jobs", json=PROMPT, headers={"Content-Encoding": "identity"})
    assert same.status_code == 201


def json_type() -> dict[str, str]:
    return {"Content-Type": "application/json"}


def test_bodies_in_memory_are_bounded_by_tenant_and_together(
    api: Api, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    memory = memory_of(api)
    memory.most = 8_000_000
    big = "Content-Length: 9000000"
    part = b'{"prompts": ["' + b"x" * 3_000_000
    with (
        api.client("another") as other,
        raw_connection(api.url) as one,
        raw_connection(api.url) as two,
        raw_connection(api.url) as three,
    ):
        one.request("POST", "/v1/batches", authorization(client), JSON, big, body=part)
        wait_until_held(memory, len(part))
        two.request("POST", "/v1/batches", authorization(client), JSON, big, body=part)
        answer = two.response()
        assert (answer.status, json.loads(answer.read())["code"]) == (429, "limit_reached")
        assert int(answer.headers["Retry-After"]) > 0
        three.request("POST", "/v1/batches", authorization(other), JSON, big, body=part)
        wait_until_held(memory, 2 * len(part))
        assert client.post("/v1/jobs", json=PROMPT).status_code == 201
        memory.most = 6_100_000
        with raw_connection(api.url) as four, api.client("a third") as third:
            four.request(
                "POST", "/v1/batches", authorization(third), JSON, "Content-Length: 200000", body=part[:200_000]
            )
            assert four.response().status == 503
    wait_until_held(memory, 0)
    assert not any("request_failed" in line for line in caplog.messages)  # those whose client went away


def memory_of(api: Api) -> bodies.Memory:
    memory: bodies.Memory = api.app.state.body_memory
    return memory


def wait_until_held(memory: bodies.Memory, size: int) -> None:
    deadline = time.monotonic() + 30
    while sum(memory.held.values()) != size:
        assert time.monotonic() < deadline, memory.held
        time.sleep(0.01)
