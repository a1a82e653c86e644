"""What a terminal may get: nothing that it obeys or hides, in any output; and JSON that is JSON in every locale."""

import ast
import io
import json
import os
import pty
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from api.queries.batches import BATCH
from api.schemas import JOB
from cli.main import main
from tests.support.command_line import CommandLine, Request, Response, Result, fake_farm

CLI = Path(__file__).resolve().parents[3] / "cli"

# A window title and an erased screen, a newline, C1's CSI, an override of the direction, an invisible tag, markup.
EVIL = "\x1b]0;x\x07\x1b[2J红\nid  forged\x9b2J\u202e\u2066\u200b\U000e0041[red]x[/red][link=http://x]色"
ESCAPED = r"\x1b]0;x\x07\x1b[2J红\nid  forged\x9b2J\u202e\u2066\u200b\U000e0041[red]x[/red][link=http://x]色"
OBEYED = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u202e\u2066\u200b\U000e0041\ud83d"} - {"\n"}
LONE = "\ud83d"  # half of an emoji
FAMILY = "👨\u200d👩\u200d👧"


def job(prompt: str, **changes: Any) -> dict[str, Any]:
    return {**JOB, "recipe": {**JOB["recipe"], "prompt": prompt}, **changes}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr("cli.client.RETRY_DELAYS_S", ())
    monkeypatch.setattr("cli.client.MAX_POLL_S", 0.01)

    def call(body: Any, *given: str, status: int = 200) -> Result:
        def answer(request: Request) -> Response:
            return Response(status, body(request) if callable(body) else body)

        with fake_farm(answer) as farm:
            return CommandLine(capsys)("--url", farm.url, "--key=k", "--format=human", *given)

    return call


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


WORKER = {
    "id": "w",
    "name": EVIL,
    "state": "ready",
    "class": {"device": "cpu", "name": EVIL},
    "models": [EVIL],
    "resident": [],
    "seconds_per_image": {},
    "reason": EVIL,
    "refusals": {EVIL: EVIL},
}
MODEL = {
    "name": "m",
    "family": EVIL,
    "limits": {"min_side": 64, "max_pixels": 4096, "schedulers": [EVIL]},
    "licence": EVIL,
    "licence_version": "1",
    "licence_url": EVIL,
    "licence_accepted_at": None,
    "restrictions": [EVIL, EVIL],
}
KEY = {"id": "k", "name": EVIL, "scopes": [], "created_at": "2026-11-22T09:00:00Z"}
FAILED = {"code": "x", "message": EVIL}
WARNED = {**BATCH, "name": EVIL, "error": FAILED, "warnings": [EVIL], "warned": 1, "state": "ended"}
BAD = {"line": 7, "reason": EVIL}
DRY_RUN = {
    "prompts": 1, "checked_prompts": 1, "is_estimate": False, "bad": 1, "jobs": 1, "images": 1, "warned": 1,
    "estimate": {"seconds": None, "unknown": {"message": EVIL}, "gpu_seconds": None, "bytes": None}, "distinct": 1,
    "warnings": [EVIL], "bad_lines": [BAD],
    "recipes": [{**JOB["recipe"], "prompt": EVIL, "seeds": [1]}],
}  # fmt: skip
ID = "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"


@pytest.mark.parametrize(
    ("body", "arguments", "shown"),
    [
        (page(job(EVIL)), ["jobs", "ls"], 1),
        (job(EVIL, error=FAILED, state="failed"), ["jobs", "show", "x"], 2),
        (page(WARNED), ["batch", "ls"], 2),
        (WARNED, ["batch", "watch", "x"], 4),
        (DRY_RUN, ["batch", "submit", ID, "--dry-run"], 2),
        (page(KEY), ["keys", "ls"], 1),
        (page(WORKER), ["workers", "ls"], 5),
        (page({**MODEL, "source": EVIL, "description": EVIL}), ["models", "show", "m"], 8),
        (page(MODEL), ["models", "accept", "m"], 4),
        (page(WORKER), ["workers", "drain", EVIL], 0),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_a_terminal_would_obey_is_escaped(
    call: Callable[..., Result], body: Any, arguments: list[str], shown: int
) -> None:
    done = call(body, *arguments)
    assert OBEYED & {*done.out, *done.err} == set()
    assert (done.out + done.err).count(ESCAPED[:14]) >= shown
    assert not any(line.startswith("id  forged") for line in (done.out + done.err).splitlines())


@pytest.mark.parametrize("arguments", [["jobs", "ls"], ["generate", "x"], ["jobs", "cancel", "x", "y"]])
def test_an_error_of_the_farm_is_escaped(
    call: Callable[..., Result], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call({"title": "x", "detail": EVIL}, *arguments, status=422)
    assert done.code != 0
    assert ESCAPED in done.out + done.err
    assert OBEYED & {*done.out, *done.err} == set()


def test_a_wrong_argument_is_escaped(call: Callable[..., Result]) -> None:
    done = call({}, "jobs", "ls", f"--tier={EVIL}")
    assert done.code == 2
    assert OBEYED & {*done.err} == set()


def test_joined_emoji_and_hanzi_stay_as_they_are(call: Callable[..., Result]) -> None:
    assert f"{FAMILY}　画坊 ❤️" in call(job(f"{FAMILY}　画坊 ❤️"), "jobs", "show", "x").out


def test_progress_on_a_terminal_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is drawn on a terminal only: a real one of the kernel's."""
    monkeypatch.setattr("cli.client.MAX_POLL_S", 0.05)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    screen, terminal = pty.openpty()
    drawn, is_drawn = bytearray(), threading.Event()

    def read() -> None:
        with suppress(OSError):  # all is read
            while block := os.read(screen, 65536):
                drawn.extend(block)
                if ESCAPED[-20:].encode() in drawn:
                    is_drawn.set()

    def answer(request: Request) -> Response:
        if "events" in request.path:
            return Response(404)
        return Response(body=job("x", state="cancelled" if is_drawn.is_set() else "queued", waiting_for=FAILED))

    reader = threading.Thread(target=read)
    with fake_farm(answer) as farm:
        reader.start()
        with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as here:
            here.setattr(sys, "stderr", stderr)
            with pytest.raises(SystemExit):
                main(["--url", farm.url, "--key=k", "jobs", "watch", "x", "--timeout=60"])
    reader.join(60)
    os.close(screen)
    assert ESCAPED in drawn.decode()
    assert not {*"\x07\u202e\u2066\x9b"} & {*drawn.decode()}


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "ascii", "latin-1"])
@pytest.mark.parametrize("format", ["json", "human", "quiet"])
def test_output_is_json_or_text_in_every_locale(encoding: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams have the encoding that a locale such as zh_CN.GBK gives them."""
    prompt = f"红\x9b\u202eé{FAMILY}{LONE}"
    written = {"stdout": io.BytesIO(), "stderr": io.BytesIO()}
    printed = {name: io.TextIOWrapper(buffer, encoding=encoding) for name, buffer in written.items()}
    with fake_farm(lambda request: Response(body=job(prompt))) as farm, monkeypatch.context() as here:
        for name, stream in printed.items():
            here.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main(["--url", farm.url, "--key=k", f"--format={format}", "jobs", "show", "x"])
    for stream in printed.values():
        stream.flush()
    out, err = (buffer.getvalue() for buffer in written.values())
    assert (ended.value.code, err) == (0, b"")
    if format == "json":
        assert json.loads(out.decode("utf-8"))["recipe"]["prompt"] == prompt
        assert json.loads(out.decode(encoding))["recipe"]["prompt"] == prompt
    assert OBEYED & {*out.decode("utf-8" if encoding == "ascii" else encoding)} == set()  # Click takes no ASCII


def test_all_output_goes_through_one_module() -> None:
    """No other module of the command line prints, nor makes a console that could."""
    forbidden = {"echo", "secho", "print", "show", "Console", "Progress", "write", "writelines", "pager"}
    found = []
    for path in sorted(CLI.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name != "terminal.py":
                name = ast.unparse(node.func)
                receiver, _, method = name.rpartition(".")
                if method in forbidden and receiver not in ("file", ""):
                    found.append(f"{path.relative_to(CLI)}:{node.lineno}: {name}")
                if not receiver and method in ("print", "echo", "secho", "Console", "Progress"):
                    found.append(f"{path.relative_to(CLI)}:{node.lineno}: {name}")
    assert found == []
