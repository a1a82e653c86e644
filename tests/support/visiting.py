"""The dashboard in a browser without scripts: signed in, with the page's token for its actions."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from common.enums import Scope
from tests.support.serving import Api


@dataclass(frozen=True)
class Visit:
    browser: httpx.Client
    token: str

    def page(self, path: str, language: str = "en", status: int = 200) -> str:
        answer = self.browser.get(f"/dashboard{path}", headers={"Accept-Language": language})
        assert answer.status_code == status, answer.text
        return answer.text

    def act(self, path: str, language: str = "en", token: str | None = None, **fields: Any) -> httpx.Response:
        """Post what a button or a form of the page posts."""
        headers = {"Origin": str(self.browser.base_url).rstrip("/"), "HX-Request": "true", "Accept-Language": language}
        headers["X-CSRF-Token"] = self.token if token is None else token
        return self.browser.post(f"/dashboard{path}", data=fields, headers=headers)


@contextmanager
def visiting(api: Api, tenant: str = "somebody", scopes: Sequence[Scope] = (Scope.ADMIN,)) -> Iterator[Visit]:
    with api.client(tenant, scopes) as client, api.stranger() as browser:
        key = client.headers["Authorization"].removeprefix("Bearer ")
        browser.post("/dashboard/sign-in", data={"key": key}, headers={"Origin": api.url})
        yield Visit(browser, find(r'"X-CSRF-Token": "(\w+)"', browser.get("/dashboard/").text))


def find(pattern: str, page: str) -> str:
    """The first group of the first match, which must be there."""
    found = re.search(pattern, page)
    assert found, pattern
    return found[1]
