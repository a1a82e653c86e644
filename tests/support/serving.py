"""The API behind a real uvicorn, in a thread of the test's process."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine

from api.__main__ import Server, make_server
from api.app import create_app
from common.accounts import keys, tenants
from common.config import Settings
from common.db import transaction
from common.enums import Scope

PROMPT = {"prompt": "红色的圆形"}
EVERYTHING = (Scope.ADMIN, Scope.OPERATOR)


@dataclass(frozen=True)
class Api:
    url: str
    app: FastAPI
    settings: Settings
    database: Engine
    server: Server

    def client(self, tenant: str = "somebody", scopes: Sequence[Scope] = (Scope.ADMIN,)) -> httpx.Client:
        """A client with a new key of this tenant."""
        with transaction(self.database) as connection:
            tenant_id = tenants.ensure_tenant(connection, tenant)
            pepper = self.settings.key_pepper.get_secret_value()
            key = keys.create_key(connection, tenant_id, "a key of the tests", scopes, pepper)
        return self.stranger(headers={"Authorization": f"Bearer {key.secret}"})

    def stranger(self, **options: Any) -> httpx.Client:
        # Without certificates, which take 25 ms to read: nothing here is https.
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, verify=False, **options)


@contextmanager
def serving(settings: Settings, database: Engine) -> Iterator[Api]:
    app = create_app(settings)
    server = make_server(app, settings, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive(), "The API did not start."
            assert time.monotonic() < deadline, "The API did not start in time."
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Api(f"http://127.0.0.1:{port}", app, settings, database, server)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "The API did not stop."


def readiness(client: httpx.Client, status: int, word: str) -> httpx.Response:
    """What `/readyz` answers, once it has this status and says this word: it is a second behind at most."""
    deadline = time.monotonic() + 10
    while True:
        answer = client.get("/readyz")
        if answer.status_code == status and word in answer.text:
            return answer
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
