"""A batch that is run twice with `reuse`: the second renders nothing, and its dataset has the same pictures."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from common.broker import Broker
from common.config import Settings
from common.datasets.columns import COLUMNS
from common.db import transaction
from common.enums import Scope
from common.queue import reuse, workers
from common.storage import Storage
from tests.integration.datasets.test_export import (
    LAYOUTS,
    LOOK,
    asked,
    ended,
    files_of,
    ready,
    rows_of,
    shown,
    submitted,
)
from tests.support.serving import Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker
from worker.control import batch_expander
from worker.control.batch_expander import Expander
from worker.datasets.exporter import Exporter

PROMPTS = [f"红色的圆形，第{n}幅" for n in range(6)]
OWN = ("image_id", "job_id", "created_at", "reused")  # the columns that are of the image, and not of its picture


@pytest.fixture
def expander(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


@pytest.fixture
def exporter(story: Story, settings: Settings) -> Exporter:
    return Exporter(story.database, Storage(settings), CATALOG)


@pytest.fixture
def rendered(client: httpx.Client, story: Story, expander: Expander, make_worker: MakeWorker) -> str:
    """A batch that the stub has rendered; its worker is heard of."""
    batch_id = submitted(client, expander, PROMPTS)
    worker = make_worker()
    worker.loop.start()
    while not ended(story):
        worker.loop.run()
    described, _ = worker.describe()
    with transaction(story.database) as connection:
        workers.heartbeat(connection, described, ready=True)
    return batch_id


def leases(story: Story) -> int:
    return story.count("leases")


def pictures(files: dict[str, bytes]) -> dict[str, bytes]:
    """Of an image folder."""
    return {path: data for path, data in files.items() if path.endswith(".png")}


def test_the_second_run_renders_nothing_and_its_dataset_has_the_same_pictures(
    client: httpx.Client, story: Story, expander: Expander, exporter: Exporter, rendered: str, settings: Settings
) -> None:
    before, stored = leases(story), story.rows("SELECT count(*) AS all FROM usage_entries")
    second = submitted(client, expander, PROMPTS, reuse=True)
    assert ended(story) == [UUID(second)]
    batch = client.get(f"/v1/batches/{second}").json()
    assert (batch["state"], batch["reuse"]) == ("ended", True)
    assert batch["images"] == {"total": 12, "open": 0, "stored": 12, "flagged": 0, "failed": 0, "cancelled": 0}
    assert leases(story) == before, "no worker had anything to do"
    assert story.rows("SELECT count(*) AS all FROM usage_entries") == stored
    assert story.balances()
    for layout in LAYOUTS:
        first, again = (ready(client, exporter, batch_id, layout=layout)["id"] for batch_id in (rendered, second))
        one, other = files_of(settings, first), files_of(settings, again)
        assert one.keys() == other.keys()
        if layout == "imagefolder":
            assert len(pictures(one)) == 12
            assert pictures(one) == pictures(other)
        same = [name for name in COLUMNS if name not in OWN]
        found, found_again = ([{name: row[name] for name in same} for row in rows_of(files)] for files in (one, other))
        assert found == found_again
        assert [row["reused"] for row in rows_of(one) + rows_of(other)] == [False] * 12 + [True] * 12
        asked_again = asked(client, second, layout=layout)
        exporter.work(UUID(asked_again), 60)
        assert shown(client, asked_again)["digest"] == shown(client, again)["digest"]


def test_what_was_killed_amid_an_expansion_is_linked_by_the_next_process(
    client: httpx.Client,
    story: Story,
    expander: Expander,
    rendered: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    link, calls = reuse.link, list[Any]()

    def die_after_the_second(*arguments: Any) -> Any:
        calls.append(arguments)
        linked = link(*arguments)
        if len(calls) == 2:
            raise Killed
        return linked

    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(reuse, "link", die_after_the_second)
    with pytest.raises(Killed):
        submitted(client, expander, PROMPTS, reuse=True)
    batch_id = story.rows("SELECT id FROM batches ORDER BY id DESC LIMIT 1")[0].id
    made = story.rows("SELECT images.state FROM images JOIN jobs ON jobs.id = job_id WHERE batch_id = :id", id=batch_id)
    assert [image.state for image in made] == ["stored"] * 4, "the chunk before it is there, and nothing of this one"
    expander.work(batch_id, 60)
    states = story.rows(
        "SELECT state, reused, count(*)::int AS images FROM images WHERE job_id IN"
        " (SELECT id FROM jobs WHERE batch_id = :id) GROUP BY 1, 2",
        id=batch_id,
    )
    assert states == [("stored", True, 12)]
    assert ended(story) == [batch_id]


def test_a_job_that_reuses_has_ended_when_it_is_answered(
    api: Api, client: httpx.Client, story: Story, expander: Expander, rendered: str
) -> None:
    """Its recipe decides, not its siblings. Another tenant's job waits."""
    body = {"prompt": PROMPTS[0], "seed": 8, "count": 1, **LOOK}
    job = client.post("/v1/jobs", json={**body, "reuse": True}).json()
    assert (job["state"], job["worker"], job["timings"]["render_s"]) == ("succeeded", None, None)
    (image,) = job["images"]
    assert (image["reused"], image["state"], image["attempts"]) == (True, "stored", 0)
    content = client.get(f"/v1/images/{image['id']}/content", follow_redirects=True)
    assert len(content.content) == image["bytes"]
    assert client.post("/v1/jobs", json=body).json()["state"] == "queued", "only who asks for it"
    with api.client("somebody else", (Scope.ADMIN,)) as other:
        assert other.post("/v1/jobs", json={**body, "reuse": True}).json()["state"] == "queued"
    assert client.post("/v1/jobs", json={**body, "reuse": "yes"}).status_code == 422
