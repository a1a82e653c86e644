"""Who has no valid key costs nothing: no body is read, no thread is held, and wrong keys are logged and counted."""

from typing import Any

import httpx
import pytest

from api.authentication import LINES_A_SECOND, Lookups
from common.accounts import keys
from common.enums import Scope
from tests.support.raw_http import JSON, RawConnection, authorization
from tests.support.serving import PROMPT, Api
from tests.support.workers import until

MANY = f"Content-Length: {10_000_000}"
WRONG = "Authorization: Bearer huaf_wrong"
FORM = "Content-Type: application/x-www-form-urlencoded"


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue"], ids=["withheld", "expecting leave"])
@pytest.mark.parametrize("credentials", ["", WRONG], ids=["no key", "a wrong key"])
@pytest.mark.parametrize(
    ("path", "media_type"), [("/v1/batches", JSON), ("/v1/jobs", JSON), ("/v1/uploads", "Content-Type: text/plain")]
)
def test_a_stranger_is_refused_before_the_body_is_read(
    raw: RawConnection, path: str, media_type: str, credentials: str, expect: str
) -> None:
    length = MANY if path != "/v1/jobs" else "Content-Length: 900000"
    raw.request("POST", path, credentials, media_type, length, expect, body=b"" if expect else b"[{},{},")
    answer = raw.response()
    assert (answer.status, answer.headers["Connection"]) == (401, "close")
    assert b'"unauthorized"' in answer.read()
    raw.connection.shutdown(1)
    assert raw.is_closed()


def test_a_stranger_s_whole_body_is_answered_too(api: Api) -> None:
    with api.stranger(headers={"Content-Type": "application/json"}) as stranger:
        answer = stranger.post("/v1/batches", content=b"[" + b"{}," * 3_000_000 + b"{}]")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("cookie", ["", "Cookie: huafang_session=forged"])
def test_a_form_of_the_dashboard_is_not_read_without_a_session(raw: RawConnection, cookie: str) -> None:
    raw.request("POST", "/dashboard/admin/keys", FORM, cookie, "Content-Length: 900000", body=b"name=")
    assert raw.response().status == 401


def test_the_open_forms_are_short(raw: RawConnection) -> None:
    raw.request("POST", "/dashboard/sign-in", FORM, "Content-Length: 900000", body=b"key=")
    assert raw.response().status == 413


def test_a_key_without_the_scope_is_refused_before_the_body_is_read(api: Api, raw: RawConnection) -> None:
    with api.client(scopes=[Scope.VIEWER]) as viewer:
        raw.request("POST", "/v1/batches", authorization(viewer), JSON, MANY, body=b"{")
    assert raw.response().status == 403


def test_a_wrong_key_is_looked_up_once_a_second(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    def count(*given: Any) -> keys.Caller:
        looked_up.append(given)
        return keys.authenticate(*given)

    monkeypatch.setattr("api.authentication.authenticate", count)
    with api.stranger(headers={"Authorization": "Bearer huaf_wrong"}) as stranger:
        assert {stranger.get("/v1/jobs").status_code for _ in range(30)} == {401}
    assert len(looked_up) < 10


def test_wrong_keys_do_not_delay_a_key_that_is_known(api: Api, client: httpx.Client) -> None:
    """The thread of strangers is taken; who was here before has others."""
    assert client.get("/v1/jobs").status_code == 200
    lookups: Lookups = api.app.state.shared.lookups
    lookups._strangers.shutdown(wait=True)
    with api.client("another") as newcomer:
        assert newcomer.get("/v1/jobs").status_code >= 500
    assert client.get("/v1/jobs").status_code == 200


def failures_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("authentication_failed")]


def test_failed_authentications_are_counted_and_logged_with_the_address(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with api.stranger() as stranger:
        stranger.get("/v1/jobs", headers={"Authorization": "Bearer huaf_wrong"})
        stranger.post("/dashboard/sign-in", data={"key": "huaf_wrong"}, headers={"Origin": api.url})
        stranger.get("/v1/jobs")
        stranger.get("/dashboard/", headers={"Cookie": "huafang_session=forged"})
        stranger.get("/dashboard/enter/nothing")
        metrics = stranger.get("/metrics").text
        counts = {
            reason: f'huafang_authentication_failures_total{{reason="{reason}"}} {count}' in metrics
            for reason, count in (("unknown_key", 2.0), ("no_key", 1.0), ("bad_session", 1.0), ("used_link", 1.0))
        }
        assert all(counts.values()), metrics
        lines = failures_in(caplog)
        assert len(lines) == 5
        assert all("client=127.0.0.1 " in line for line in lines)
        assert not any("huaf_wrong" in line for line in lines)
        for _ in range(5 * LINES_A_SECOND):
            stranger.get("/v1/jobs")
        assert len(failures_in(caplog)) < 5 * LINES_A_SECOND
        until(lambda: stranger.get("/v1/jobs").status_code == 401 and "unlogged=" in failures_in(caplog)[-1], 10)


def test_a_request_with_a_key_is_answered_as_ever(client: httpx.Client) -> None:
    assert client.post("/v1/jobs", json=PROMPT).status_code == 201
    assert client.post("/v1/batches", json={"prompts": ["红色的圆形"]}).status_code == 201
