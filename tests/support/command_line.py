"""Calling `huafang` from a test, here or as a process of its own; and a farm that answers as it is told."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.main import main

HUAFANG = (sys.executable, "-P", "-m", "cli")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def start(*arguments: str, environment: dict[str, str], timeout: float = 100, cwd: Path | None = None) -> Done:
    """As a process of its own, with only these variables."""
    done = subprocess.run(
        [*HUAFANG, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class CommandLine:
    """Calls `huafang` in this process: quick."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = self.capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Say:
    """An answer."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


HANG_UP = Say(status=0)


@dataclass
class Farm:
    url: str
    asked: list[Asked]


@contextmanager
def farm_that(answer: Callable[[Asked], Say]) -> Iterator[Farm]:
    """An HTTP server on loopback that answers what the test wants: for what a real farm does once in a year."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            if body and self.headers.get("Content-Type") == "application/json":
                body = json.loads(body)
            asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            farm.asked.append(asked)
            said = answer(asked)
            if said is HANG_UP:
                self.close_connection = True
                return
            data = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
            self.send_response(said.status)
            for name, value in {"Content-Length": str(len(data)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_one

        def log_message(self, format: str, *args: Any) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        farm = Farm(f"http://127.0.0.1:{server.server_address[1]}", [])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield farm
        finally:
            server.shutdown()
            thread.join(10)
