"""Batches, datasets and images on the dashboard: what is shown of them, and their actions."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.dashboard.views.datasets import export_command
from api.queries.datasets import DATASET, Dataset
from common.enums import Scope
from tests.support.serving import Api
from tests.support.visiting import Visit, visiting
from tests.support.workers import MakeWorker

pytestmark = pytest.mark.timeout(90)

HOSTILE = '<script>alert(1)</script>" onerror="x\' {{7*7}}'


@pytest.fixture
def visit(api: Api) -> Iterator[Visit]:
    with visiting(api) as visit:
        yield visit


@pytest.fixture
def batch(client: httpx.Client) -> dict[str, Any]:
    draft = {"prompts": ["红色的圆形", HOSTILE], "defaults": {"model": "mini-zh"}, "name": HOSTILE, "seed": 7}
    found: dict[str, Any] = client.post("/v1/batches", json=draft).json()
    return found


def test_a_batch_is_paused_resumed_and_cancelled(client: httpx.Client, visit: Visit, batch: dict[str, Any]) -> None:
    path = f"/batches/{batch['id']}"
    for action, state in (("pause", "paused"), ("resume", "checking"), ("cancel", "ended")):
        answer = visit.act(f"{path}/{action}")
        assert (answer.status_code, 'class="notice"' in answer.text) == (200, True)
        assert client.get(f"/v1/batches/{batch['id']}").json()["state"] == state
    assert 'class="state ended"' in visit.page(path)


def test_a_refused_action_shows_a_notice(visit: Visit, batch: dict[str, Any]) -> None:
    path = f"/batches/{batch['id']}"
    visit.act(f"{path}/cancel")
    answer = visit.act(f"{path}/pause")
    assert answer.status_code == 409
    assert answer.text.lstrip().startswith('<p class="notice error">')
    assert "was cancelled" in answer.text


def test_a_viewer_changes_nothing(api: Api, client: httpx.Client, batch: dict[str, Any]) -> None:
    path = f"/batches/{batch['id']}"
    with visiting(api, scopes=[Scope.VIEWER]) as viewer:
        page = viewer.page(path)
        assert "hx-post" not in page
        assert viewer.act(f"{path}/cancel").status_code == 403
        assert viewer.act(f"{path}/export").status_code == 403
    assert client.get(f"/v1/batches/{batch['id']}").json()["cancelled_at"] is None


@pytest.mark.parametrize(("header", "value"), [("X-CSRF-Token", "0" * 64), ("Origin", "https://evil.example")])
def test_an_action_without_the_token_or_from_another_origin_is_refused(
    api: Api, client: httpx.Client, visit: Visit, batch: dict[str, Any], header: str, value: str
) -> None:
    answer = visit.browser.post(
        f"/dashboard/batches/{batch['id']}/cancel",
        headers={"Origin": api.url, "X-CSRF-Token": visit.token, header: value},
    )
    assert answer.status_code == 403
    assert client.get(f"/v1/batches/{batch['id']}").json()["cancelled_at"] is None


def test_another_tenant_sees_none_of_it(api: Api, batch: dict[str, Any]) -> None:
    with visiting(api, "somebody else") as stranger:
        assert batch["id"] not in stranger.page("/batches")
        stranger.page(f"/batches/{batch['id']}", status=404)
        assert stranger.act(f"/batches/{batch['id']}/cancel").status_code == 404


def test_user_input_is_shown_as_text(visit: Visit, batch: dict[str, Any]) -> None:
    for path in ("/batches", f"/batches/{batch['id']}"):
        page = visit.page(path)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script>alert" not in page
        assert "{{7*7}}" in page


def test_an_export_is_requested_with_a_split(client: httpx.Client, visit: Visit, batch: dict[str, Any]) -> None:
    answer = visit.act(f"/batches/{batch['id']}/export", layout="parquet", test_percent="10")
    assert answer.status_code == 200
    (dataset,) = client.get("/v1/datasets", params={"batch": batch["id"]}).json()["items"]
    assert (dataset["layout"], dataset["splits"]) == ("parquet", {"test": 0.1, "train": 0.9})
    assert "parquet" in visit.page(f"/batches/{batch['id']}")
    page = visit.page(f"/datasets/{dataset['id']}")
    assert 'class="state waiting"' in page
    visit.page(f"/datasets/{dataset['id']}/files/README.md", status=404)


def test_an_export_is_requested_with_a_condition_and_a_size(
    client: httpx.Client, visit: Visit, batch: dict[str, Any]
) -> None:
    path = f"/batches/{batch['id']}/export"
    chosen = {"where": "steps = 1", "image_format": "webp", "resize": "32", "test_percent": "10"}
    assert visit.act(path, **chosen).status_code == 200
    (dataset,) = client.get("/v1/datasets", params={"batch": batch["id"]}).json()["items"]
    assert (dataset["where"], dataset["image_format"], dataset["resize"]) == ("steps = 1", "webp", 32)
    assert "steps = 1" in visit.page(f"/datasets/{dataset['id']}")
    refused = visit.act(path, where="colour = 'red'")
    assert (refused.status_code, "colour" in refused.text) == (422, True)
    assert visit.act(path, resize="large").status_code == 422
    assert len(client.get("/v1/datasets", params={"batch": batch["id"]}).json()["items"]) == 1


def test_the_command_of_a_dataset_says_all_that_it_was_made_with() -> None:
    chosen = {"where": "status = 'stored'", "shard_images": 9, "image_format": "webp"}
    made = Dataset.model_validate(DATASET | {"batches": [UUID(int=7), UUID(int=8)], **chosen})
    assert export_command(made) == (
        f"huafang dataset export {UUID(int=7)} {UUID(int=8)} --layout=webdataset --split=test=0.1 "
        """'--where=status = '"'"'stored'"'"'' --shard-images=9 --image-format=webp --out=DIR"""
    )


def test_images_are_shown_found_by_their_prompt_and_compared_by_seed(
    client: httpx.Client, visit: Visit, make_worker: MakeWorker
) -> None:
    for prompt, steps in (("红色的圆形", 10), ("红色的圆形", 20), ("夜空中的月亮", 10)):
        client.post("/v1/jobs", json={"prompt": prompt, "model": "mini-zh", "seed": 5, "steps": steps})
    worker = make_worker()
    worker.loop.start()
    while len(client.get("/v1/jobs", params={"state": "succeeded"}).json()["items"]) < 3:
        worker.loop.run()
    shown = visit.page("/images")
    assert shown.count("data-full") == 3
    found = visit.page("/images?q=月亮&model=")
    assert (found.count("data-full"), "红色的圆形" in found) == (1, False)
    circle = re.findall(r'id="image-([0-9a-f-]+)"', visit.page("/images?q=圆"))
    page = visit.page(f"/images/{circle[0]}")
    assert all(one in page for one in circle)
    assert re.findall(r"<dt[^>]*>(\w+)</dt><dd>(\w+)</dd>", page) == [("steps", "20"), ("steps", "10")]


def test_the_stream_of_a_batch_sends_its_changes(client: httpx.Client, visit: Visit, batch: dict[str, Any]) -> None:
    with visit.browser.stream("GET", f"/dashboard/live/batches/{batch['id']}") as stream:
        lines = stream.iter_lines()
        assert "state checking" in next(line for line in lines if 'class="state' in line)
        client.post(f"/v1/batches/{batch['id']}/cancel")
        assert next(line for line in lines if "state ended" in line)
