"""Running `huafang` in a test, in this process or in its own; and a fake farm with the answers of a test."""

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
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_process(*arguments: str, environment: dict[str, str], timeout: float = 240, cwd: Path | None = None) -> Result:
    """Run `huafang` as a process with only these variables."""
    process = subprocess.run(
        [*HUAFANG, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


@dataclass(frozen=True)
class CommandLine:
    """Runs `huafang` in this process, which is faster."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        output = self.capsys.readouterr()
        return Result(int(ended.value.code or 0), output.out, output.err)


@dataclass
class Request:
    """A request that the fake farm got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


DROP_CONNECTION = Response(status=0)


@dataclass
class FakeFarm:
    url: str
    requests: list[Request]


@contextmanager
def fake_farm(answer: Callable[[Request], Response]) -> Iterator[FakeFarm]:
    """An HTTP server on loopback with the answers of `answer`, for what a real farm does rarely."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            if body and self.headers.get("Content-Type") == "application/json":
                body = json.loads(body)
            request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            farm.requests.append(request)
            response = answer(request)
            if response is DROP_CONNECTION:
                self.close_connection = True
                return
            data = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            self.send_response(response.status)
            for name, value in {"Content-Length": str(len(data)), **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_one

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        farm = FakeFarm(f"http://127.0.0.1:{server.server_address[1]}", [])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield farm
        finally:
            server.shutdown()
            thread.join(60)
