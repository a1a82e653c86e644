"""Signing in to the dashboard: sessions, CSRF tokens, origins, links, headers, languages."""

import re
import time
from collections.abc import Iterator

import httpx
import pytest
from itsdangerous import TimestampSigner

from api.dashboard.sessions import SESSION_S
from common.accounts import keys, tenants
from common.db import transaction
from common.enums import Scope
from tests.support.serving import Api

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def browser(api: Api) -> Iterator[httpx.Client]:
    with api.stranger() as client:
        yield client


def key_of(api: Api, *scopes: Scope) -> keys.NewKey:
    with transaction(api.database) as connection:
        tenant_id = tenants.ensure_tenant(connection, "somebody")
        pepper = api.settings.key_pepper.get_secret_value()
        return keys.create_key(connection, tenant_id, "a key of the tests", scopes, pepper)


def sign_in(api: Api, browser: httpx.Client, key: str, **more: str) -> httpx.Response:
    return browser.post("/dashboard/sign-in", data={"key": key, **more}, headers={"Origin": api.url})


def test_a_key_is_exchanged_for_a_session_that_no_script_or_other_site_can_use(api: Api, browser: httpx.Client) -> None:
    assert browser.get("/dashboard/").headers["location"].endswith("/dashboard/sign-in?to=%2F")
    answer = sign_in(api, browser, key_of(api, Scope.VIEWER).secret)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/")
    cookie = answer.headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/dashboard"} <= {one.strip() for one in cookie.split(";")}
    assert browser.get("/dashboard/").status_code == 200
    with transaction(api.database) as connection:
        (record,) = connection.exec_driver_sql("SELECT via, action, request_id FROM audit").all()
    assert tuple(record) == ("dashboard", "dashboard.sign_in", answer.headers["X-Request-Id"])


@pytest.mark.parametrize("scopes", [[], [Scope.JOBS_READ, Scope.JOBS_WRITE]])
def test_a_key_of_another_scope_is_refused(api: Api, browser: httpx.Client, scopes: list[Scope]) -> None:
    answer = sign_in(api, browser, key_of(api, *scopes).secret)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "none of the scopes viewer, admin and operator" in answer.text


def test_an_unknown_key_is_refused(api: Api, browser: httpx.Client) -> None:
    answer = sign_in(api, browser, "huaf_nonsense")
    assert answer.status_code == 401
    assert "unknown, was revoked or has expired" in answer.text


def test_revoking_the_key_ends_its_sessions(api: Api, browser: httpx.Client) -> None:
    key = key_of(api, Scope.ADMIN)
    sign_in(api, browser, key.secret)
    with transaction(api.database) as connection:
        keys.revoke_key(connection, tenants.ensure_tenant(connection, "somebody"), key.id)
    assert browser.get("/dashboard/").status_code == 303


def test_a_session_expires_on_the_server(api: Api, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = now = int(time.time())
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now)
    kept = sign_in(api, browser, key_of(api, Scope.VIEWER).secret).headers["set-cookie"]
    assert f"Max-Age={SESSION_S};" in kept
    session = browser.cookies["huafang_session"]

    def status() -> int:
        headers = {"Cookie": f"huafang_session={session}"}
        return httpx.get(f"{api.url}/dashboard/", headers=headers, trust_env=False, timeout=30).status_code

    now = begin + SESSION_S
    assert status() == 200
    now = begin + SESSION_S + 1
    assert status() == 303


def test_a_forged_or_altered_session_is_refused(api: Api, browser: httpx.Client) -> None:
    sign_in(api, browser, key_of(api, Scope.ADMIN).secret)
    session = browser.cookies["huafang_session"]
    for forged in ("", "x", session[:-2] + "xx", session.replace(".", ""), "%00"):
        answer = httpx.get(
            f"{api.url}/dashboard/", headers={"Cookie": f"huafang_session={forged}"}, trust_env=False, timeout=30
        )
        assert answer.status_code == 303, forged


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1"])
def test_a_form_of_another_site_is_refused(api: Api, browser: httpx.Client, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = browser.post("/dashboard/sign-in", data={"key": key_of(api, Scope.ADMIN).secret}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example/", "\\\\evil.example", "/\\evil.example"])
def test_signing_in_redirects_to_no_other_site(api: Api, browser: httpx.Client, to: str) -> None:
    answer = sign_in(api, browser, key_of(api, Scope.ADMIN).secret, to=to)
    assert re.match(r"/dashboard/[^/\\]", answer.headers["location"])


def test_a_link_signs_in_once(api: Api, browser: httpx.Client) -> None:
    with api.client() as client:
        link = client.post("/dashboard/links").json()["url"]
    assert browser.get(link).status_code == 303
    assert browser.get("/dashboard/").status_code == 200
    with api.stranger() as another:
        assert another.get(link).status_code == 401
        assert another.get("/dashboard/").status_code == 303


def test_only_an_admin_gets_such_a_link(api: Api) -> None:
    with api.client(scopes=[Scope.VIEWER]) as client:
        answer = client.post("/dashboard/links")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_signing_out_ends_the_session(api: Api, browser: httpx.Client) -> None:
    sign_in(api, browser, key_of(api, Scope.ADMIN).secret)
    browser.post("/dashboard/sign-out", headers={"Origin": api.url})
    assert browser.get("/dashboard/").status_code == 303


def test_signing_out_ends_neither_an_earlier_nor_a_later_session_of_the_key(
    api: Api, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time()) - 3
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now)
    key, sessions = key_of(api, Scope.ADMIN), []
    for _ in range(3):
        now += 1
        sign_in(api, browser, key.secret)
        sessions.append({"Cookie": f"huafang_session={browser.cookies['huafang_session']}"})
    with api.stranger() as elsewhere:
        elsewhere.post("/dashboard/sign-out", headers={"Origin": api.url, **sessions[1]})
        assert [elsewhere.get("/dashboard/", headers=one).status_code for one in sessions] == [200, 303, 200]


def test_every_response_has_the_security_headers(api: Api, browser: httpx.Client) -> None:
    for path in ("/dashboard/sign-in", "/dashboard/nothing", "/dashboard/static/farm.js"):
        headers = browser.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    assert browser.get("/dashboard/sign-in").headers["cache-control"] == "no-store"


def test_a_file_is_cached_under_its_own_digest_only(api: Api, browser: httpx.Client) -> None:
    (script,) = re.findall(r'src="(/dashboard/static/farm.js[^"]*)"', browser.get("/dashboard/sign-in").text)
    assert "immutable" in browser.get(script).headers["cache-control"]
    for other in (
        f"{script}0",
        script.partition("?")[0],
        "/dashboard/static/nothing.js",
        "/dashboard/static/../app.py",
    ):
        assert browser.get(other).headers["cache-control"] == "no-store"


def test_the_language_is_the_browser_s_until_one_is_chosen(api: Api, browser: httpx.Client) -> None:
    chinese = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}
    assert '<html lang="zh-CN">' in browser.get("/dashboard/sign-in", headers=chinese).text
    assert "<h1>登录</h1>" in browser.get("/dashboard/sign-in", headers=chinese).text
    assert "<h1>Sign in</h1>" in browser.get("/dashboard/sign-in").text
    browser.post("/dashboard/language", data={"language": "en", "to": "/sign-in"}, headers={"Origin": api.url})
    assert "<h1>Sign in</h1>" in browser.get("/dashboard/sign-in", headers=chinese).text


def test_an_error_is_a_page_in_the_reader_s_language(api: Api, browser: httpx.Client) -> None:
    answer = browser.get("/dashboard/nothing", headers={"Accept-Language": "zh"})
    assert answer.status_code == 404
    assert "此地址没有内容" in answer.text
