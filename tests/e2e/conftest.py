"""An API in this process, and the command line that talks to it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from common.config import Settings
from tests.support.command_line import CommandLine, Result
from tests.support.serving import serving


@pytest.fixture
def client(settings: Settings, database: Engine) -> Iterator[httpx.Client]:
    with serving(settings, database) as api, api.client() as client:
        yield client


@pytest.fixture
def call(
    client: httpx.Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    key = client.headers["Authorization"].removeprefix("Bearer ")
    found = {"HUAFANG_URL": str(client.base_url), "HUAFANG_KEY": key, "HUAFANG_HOME": str(tmp_path)}
    with monkeypatch.context() as here:
        for name, value in (found | {"PATH": os.environ["PATH"]}).items():
            here.setenv(name, value)
        yield lambda *given: CommandLine(capsys)(*given, "--format=json")
