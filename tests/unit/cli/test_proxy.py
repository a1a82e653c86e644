"""Settings of proxies: none matters on the way to this machine, and elsewhere only the one that is needed."""

import pytest

from cli.proxy import is_here
from tests.support.command_line import CommandLine, Request, Response, fake_farm

PAGE: dict[str, object] = {"items": [], "next_cursor": None}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("cli.client.RETRY_DELAYS_S", ())
    return CommandLine(capsys)


def answer(request: Request) -> Response:
    return Response(body=PAGE)


UNUSABLE = [
    ("all_proxy", "socks5://127.0.0.1:7891"),
    ("ALL_PROXY", "socks://127.0.0.1:7891/"),
    ("http_proxy", "http://[::1"),
    ("HTTP_PROXY", "ftp://…"),
]


@pytest.mark.parametrize(
    ("variable", "value"),
    [*UNUSABLE, ("http_proxy", "127.0.0.1:99999"), ("no_proxy", "localhost,[::1]"), ("no_proxy", "fe80::/10")],
)
def test_this_machine_is_reached_directly(
    call: CommandLine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with fake_farm(answer) as farm:
        done = call("--url", farm.url, "--key=k", "--format=json", "jobs", "ls")
    assert (done.code, done.json, done.err) == (0, [], "")


@pytest.mark.parametrize(("variable", "value"), UNUSABLE)
def test_a_proxy_that_cannot_be_used_is_one_sentence(
    call: CommandLine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    done = call("--url=http://farm.example", "--key=k", "jobs", "ls")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith(f"huafang: The proxy in {variable} cannot be used (")
    assert "add farm.example to no_proxy" in done.err


def test_another_machine_is_reached_by_its_proxy(call: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:7891")  # that of other schemes
    monkeypatch.setenv("no_proxy", "localhost,[::1],fe80::/10")
    with fake_farm(answer) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
        done = call("--url=http://farm.example", "--key=k", "--format=json", "jobs", "ls")
    assert (done.code, done.json) == (0, [])
    assert [request.path for request in proxy.requests] == ["http://farm.example/v1/jobs?limit=20"]


def test_what_is_this_machine() -> None:
    here = ("127.0.0.1", "127.8.8.8", "localhost", "huafang.localhost", "0.0.0.0")
    elsewhere = ("farm.example", "192.0.2.1", "2001:db8::1", "1270.0.1", "", "局域网", "notlocalhost", "a\0b")
    assert [host for host in here if not is_here(host)] == []
    assert [host for host in elsewhere if is_here(host)] == []
