"""The buttons that delete, and what the dashboard shows of what was deleted or is kept no longer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from common.enums import Scope
from tests.support.serving import Api
from tests.support.stories import Story
from tests.support.visiting import Visit, visiting
from tests.support.workers import MakeWorker

pytestmark = pytest.mark.timeout(90)

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}


@pytest.fixture
def visit(api: Api) -> Iterator[Visit]:
    with visiting(api) as visit:
        yield visit


@pytest.fixture
def job(client: httpx.Client, story: Story, make_worker: MakeWorker) -> Any:
    job = client.post("/v1/jobs", json={"prompt": "红色的圆形", **LOOK}).json()
    worker = make_worker()
    worker.loop.start()
    while story.rows("SELECT FROM images WHERE state IN ('queued', 'running')"):
        worker.loop.run()
    return client.get(f"/v1/jobs/{job['id']}").json()


def test_each_page_has_a_button_that_asks_and_deletes(client: httpx.Client, visit: Visit, job: Any) -> None:
    batch = client.post("/v1/batches", json={"prompts": ["红色的圆形"], "defaults": LOOK}).json()
    dataset = client.post("/v1/datasets", json={"batch": batch["id"]}).json()
    paths = [f"/images/{job['images'][0]['id']}", f"/jobs/{job['id']}"]
    paths += [f"/datasets/{dataset['id']}", f"/batches/{batch['id']}"]
    for path in paths:
        page = visit.page(path)
        button = page[page.index(f'hx-post="/dashboard{path}/delete"') :]
        assert "hx-confirm=" in button[: button.index("</button>")]
        answer = visit.act(f"{path}/delete", language="zh")
        assert (answer.status_code, "已删除" in answer.text) == (200, True)
        assert "It was deleted." in visit.page(path, status=410)
        assert client.get(f"/v1{path}").status_code == 410
        assert path not in visit.page(f"/{path.split('/')[1]}".replace("/datasets", "/batches"))


def test_a_deletion_names_who_did_it_on_the_dashboard(story: Story, visit: Visit, job: Any) -> None:
    visit.act(f"/jobs/{job['id']}/delete")
    assert story.rows("SELECT via, action FROM audit WHERE subject = :id", id=job["id"]) == [
        ("dashboard", "job.delete")
    ]


def test_a_viewer_deletes_nothing(api: Api, client: httpx.Client, job: Any) -> None:
    with visiting(api, scopes=[Scope.VIEWER]) as viewer:
        assert "/delete" not in viewer.page(f"/jobs/{job['id']}")
        assert viewer.act(f"/jobs/{job['id']}/delete").status_code == 403
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 200


def test_an_image_whose_picture_is_kept_no_longer_says_so(story: Story, visit: Visit, job: Any) -> None:
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET picture_deleted_at = now()"))
    assert "no longer kept" in visit.page(f"/jobs/{job['id']}")
    image = f"/images/{job['images'][0]['id']}"
    assert "keeps pictures for a number of days" in visit.page(image, status=410)
    assert image not in visit.page("/images")
    assert visit.browser.get(f"/dashboard{image}/thumbnail").status_code == 410
