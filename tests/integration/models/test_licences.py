"""Licences that restrict what a model is used for: shown with it, and accepted by a tenant before its first job."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from common.broker import Broker
from common.config import SHIPPED_CATALOG, Settings
from common.enums import Scope
from common.storage import Storage
from tests.support.serving import Api, serving
from tests.support.stories import CATALOG, Story
from worker.control.batch_expander import Expander

NAME, VERSION = "CreativeML OpenRAIL-M", "2022-08-22"
ZH = {"prompt": "女孩们打开了另一世界的大门", "model": "zh-v0"}


def accept(client: httpx.Client, model: str = "zh-v0", version: str = VERSION) -> httpx.Response:
    return client.post(f"/v1/models/{model}/licence", json={"version": version})


def model(client: httpx.Client, name: str = "zh-v0") -> dict[str, Any]:
    return next(each for each in client.get("/v1/models").json()["items"] if each["name"] == name)


def submissions(client: httpx.Client, job: str) -> list[httpx.Response]:
    """Every way to submit a job."""
    batch = {"prompts": ["女孩"], "defaults": {"model": "zh-v0"}}
    return [
        client.post("/v1/jobs", json=ZH),
        client.post("/v1/batches", json=batch),
        client.post(f"/v1/jobs/{job}/retry"),
    ]


def test_no_job_is_accepted_before_the_licence_is(client: httpx.Client, api: Api, story: Story) -> None:
    ended = str(story.submit(model="zh-v0"))
    client.post(f"/v1/jobs/{ended}/cancel")
    for refused in submissions(client, ended):
        assert (refused.status_code, refused.json()["code"]) == (403, "licence_not_accepted")
    detail = refused.json()["detail"]
    assert all(forbidden in detail for forbidden in model(client)["restrictions"])
    assert model(client)["licence_url"] in detail
    assert "huafang models accept zh-v0" in detail
    assert (story.count("jobs"), story.count("batches")) == (1, 0)
    assert client.post("/v1/jobs?dry_run=true", json=ZH).status_code == 200

    before = model(client)
    assert (before["licence"], before["licence_version"], before["licence_accepted_at"]) == (NAME, VERSION, None)
    accepted = accept(client)
    assert (accepted.status_code, accepted.json()) == (200, model(client))
    assert accept(client).json()["licence_accepted_at"] == accepted.json()["licence_accepted_at"] is not None
    assert [answer.status_code for answer in submissions(client, ended)] == [201, 201, 201]

    (row,) = story.rows("SELECT name, licence, version FROM licence_acceptances JOIN api_keys ON api_keys.id = key_id")
    assert tuple(row) == ("a key of the tests", NAME, VERSION)
    with api.client("another") as another:
        assert another.post("/v1/jobs", json=ZH).status_code == 403


def test_another_version_of_it_is_accepted_again(client: httpx.Client, settings: Settings, database: Engine) -> None:
    accept(client)
    with serving(settings.model_copy(update={"catalog": revised(settings)}), database) as api, api.client() as later:
        assert later.post("/v1/jobs", json=ZH).status_code == 403
        stale = accept(later)
        assert (stale.status_code, "2027-01-01" in stale.json()["detail"]) == (409, True)
        assert accept(later, version="2027-01-01").status_code == 200
        assert later.post("/v1/jobs", json=ZH).status_code == 201


def revised(settings: Settings) -> Path:
    """The catalogue that is shipped, with the licence's next version."""
    file = settings.home / "catalog.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SHIPPED_CATALOG.read_text().replace(VERSION, "2027-01-01"))
    return file


@pytest.fixture
def asked(api: Api) -> Iterator[list[str]]:
    """The statements that the API sends about acceptances."""
    seen: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if "licence_acceptances" in statement:
            seen.append(statement)

    event.listen(api.app.state.shared.engine, "before_cursor_execute", note)
    yield seen
    event.remove(api.app.state.shared.engine, "before_cursor_execute", note)


def test_it_is_looked_up_once_and_never_for_a_free_model(client: httpx.Client, asked: list[str]) -> None:
    assert client.post("/v1/jobs", json={"prompt": "红色的圆形"}).status_code == 201
    assert asked == []
    accept(client)
    asked.clear()
    assert [client.post("/v1/jobs", json=ZH).status_code for _ in range(3)] == [201, 201, 201]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [("zh-v9", {"version": VERSION}, 404), ("zh-v0", {}, 422), ("zh-v0", {"version": 3}, 422), ("mini-zh", {}, 422)],
)
def test_what_is_no_acceptance_is_refused(client: httpx.Client, name: str, body: Any, status: int) -> None:
    assert client.post(f"/v1/models/{name}/licence", json=body).status_code == status


def test_it_takes_a_key_that_may_submit(api: Api) -> None:
    with api.client(scopes=(Scope.JOBS_READ,)) as reader, api.client(scopes=(Scope.JOBS_WRITE,)) as writer:
        assert accept(reader).json()["code"] == "forbidden"
        assert accept(writer).status_code == 200


def test_a_line_of_a_batch_needs_it_too(client: httpx.Client, story: Story, settings: Settings) -> None:
    """What its file names is known only when it is checked."""
    lines = [{"prompt": "红色的圆形", "model": "mini-zh"}, ZH]
    data = "\n".join(map(json.dumps, lines)).encode()
    headers = {"Content-Type": "application/jsonl"}
    expander = Expander(story.database, Storage(settings), Broker(settings), CATALOG)

    def error_of_a_batch() -> Any:
        upload = client.post("/v1/uploads", content=data, headers=headers).json()["id"]
        made = client.post("/v1/batches", json={"upload": upload, "defaults": {"steps": 2}}).json()
        expander.work(made["id"], 60)
        return client.get(f"/v1/batches/{made['id']}").json()["error"]

    refused = error_of_a_batch()
    assert refused["code"] == "licence_not_accepted"
    assert refused["message"].startswith("Line 2: zh-v0 is under the licence")
    assert story.count("jobs") == 0
    accept(client)
    assert error_of_a_batch() is None
    assert story.count("jobs") == 2


def test_every_model_of_a_matrix_needs_it(client: httpx.Client) -> None:
    batch = {"prompts": ["红色的圆形"], "matrix": {"model": ["mini-zh", "zh-v0"]}}
    assert client.post("/v1/batches", json=batch).json()["code"] == "licence_not_accepted"
    accept(client)
    assert client.post("/v1/batches", json=batch).status_code == 201
