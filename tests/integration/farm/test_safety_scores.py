"""What the safety checker said of an image: kept with it, and shown to those who run the farm only."""

import re
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from sqlalchemy import text

from common.accounts.tenants import OPERATOR
from common.config import Settings
from common.db import migrate, transaction
from common.enums import ImageState, Scope
from common.queue import leases
from common.queue.leases import Outcome
from tests.integration.dashboard.test_farm import Visitor, row_of
from tests.support.serving import EVERYTHING, Api
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until_published

PROMPTS = ("圆形", "圆形 #flagged", "圆形 #unchecked", "圆形 #nan")


def render(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.loop.start()
    worker.loop.run()
    until_published(worker)


def scores(story: Story) -> list[tuple[str, float | None, int | None]]:
    """State, score and concept of every image, in the order of submission."""
    rows = story.rows("SELECT state, safety_score, safety_concept FROM images ORDER BY id")
    return [(row.state, row.safety_score, row.safety_concept) for row in rows]


def test_the_score_is_kept_with_stored_and_flagged_images(story: Story, make_worker: MakeWorker) -> None:
    for prompt in PROMPTS:
        story.submit(prompt=prompt)
    render(make_worker)
    stored, flagged, *others = scores(story)
    assert stored[0] == ImageState.STORED
    assert stored[1] is not None
    assert stored[1] < 0
    assert stored[2] in range(17)
    assert flagged[0] == ImageState.FLAGGED
    assert flagged[1] is not None
    assert flagged[1] > 0
    assert flagged[2] in range(17)
    assert others == [(ImageState.FLAGGED, None, None), (ImageState.FAILED, None, None)]


# Who sees it


@pytest.fixture
def rendered(story: Story, make_worker: MakeWorker) -> dict[str, tuple[str, str]]:
    """By tenant: the job and the image of a flagged picture."""
    found = {}
    for tenant in (OPERATOR, "somebody"):
        job = story.submit(tenant, prompt="圆形 #flagged")
        found[tenant] = (str(job), str(story.images(job)[0].id))
    render(make_worker)
    return found


def test_an_operator_reads_the_score_of_an_image(api: Api, story: Story, rendered: dict[str, tuple[str, str]]) -> None:
    _, image = rendered[OPERATOR]
    state, score, concept = scores(story)[0]
    with api.client(OPERATOR, EVERYTHING) as operator:
        shown = operator.get(f"/v1/images/{image}").raise_for_status().json()
        assert (shown["state"], shown["safety"]) == (state, {"score": pytest.approx(score), "concept": concept})
        assert operator.get(f"/v1/images/{rendered['somebody'][1]}").status_code == 404
        with transaction(story.database) as connection:  # as a worker of an earlier release leaves it
            connection.execute(text("UPDATE images SET safety_score = NULL, safety_concept = NULL"))
        assert operator.get(f"/v1/images/{image}").json() == shown | {"safety": None}


@pytest.mark.parametrize(
    ("tenant", "scopes"),
    [
        ("somebody", [Scope.ADMIN]),
        ("somebody", [Scope.VIEWER, Scope.JOBS_READ]),
        (OPERATOR, [scope for scope in Scope if scope != Scope.OPERATOR]),
    ],
)
def test_nobody_else_is_told_any_score(
    api: Api, story: Story, rendered: dict[str, tuple[str, str]], tenant: str, scopes: list[Scope]
) -> None:
    """Not in any answer, page or stream."""
    job, image = rendered[tenant]
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE images SET safety_score = 0.314159"))
    said = re.compile(r'safety_score|safety_concept|"safety"|Lowest score|\b0\.314')
    with api.client(tenant, scopes) as client:
        paths = [path.format(job_id=job, image_id=image) for path in paths_to_read(client)]
        answers = {path: client.get(path).text for path in paths}
        assert answers[f"/v1/images/{image}"].startswith(f'{{"id":"{image}"')
    with closing(Visitor(api, *scopes, tenant=tenant)) as visitor:
        for page in ("/", "/jobs", f"/jobs/{job}", "/images?state=flagged", "/workers", "/admin", "/batches"):
            answers[page] = visitor.page(page)
    assert [path for path, answer in answers.items() if said.search(answer)] == []
    assert said.search('{"safety": null}')


def paths_to_read(client: httpx.Client) -> Iterator[str]:
    """Those of an API that need no more than the ids of a job and an image; a job that has ended has a stream."""
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        if "get" in operations and {*re.findall(r"\{(\w+)\}", path)} <= {"job_id", "image_id"}:
            yield path


def test_the_page_of_the_farm_counts_flagged_images_by_concept(
    api: Api, story: Story, rendered: dict[str, tuple[str, str]], make_worker: MakeWorker
) -> None:
    story.submit("another", prompt="圆形 #unchecked", count=2)
    render(make_worker)
    with transaction(story.database) as connection:
        connection.execute(text("UPDATE images SET safety_concept = 5, safety_score = 0.004 WHERE safety_score > 0"))
    with closing(Visitor(api, *EVERYTHING, tenant=OPERATOR)) as operator:
        page = operator.page("/admin")
        assert row_of(page, "flagged-mini-zh-5") == ["mini-zh", "5", "2", "0.004"]
        assert row_of(page, "flagged-mini-zh-None") == ["mini-zh", "–", "2", "–"]
        assert "被安全检查器拦下的图像" in operator.page("/admin", **{"Accept-Language": "zh-CN"})
        with transaction(story.database) as connection:
            connection.execute(text("UPDATE images SET finished_at = now() - interval '8 days'"))
        assert "flagged-mini-zh" not in operator.page("/admin")


# Beside an earlier release

OURS = ",\n            safety_score = verdict.safety_score, safety_concept = verdict.safety_concept"


def test_a_worker_of_the_release_before_publishes_before_and_after_the_migration(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = text(leases.PUBLISH.text.replace(OURS, "").replace(", safety_score real, safety_concept smallint", ""))
    assert "safety" not in before.text
    with transaction(story.database) as connection:  # the tables of the release before
        connection.execute(text("ALTER TABLE images DROP COLUMN safety_score, DROP COLUMN safety_concept"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'r0004'"))
        connection.execute(text("UPDATE schema_version SET revision = 4"))
    with monkeypatch.context() as patch:
        patch.setattr(leases, "PUBLISH", before)
        flag_one(story)
        migrate(settings.database_url.get_secret_value())
        flag_one(story)
    flag_one(story)
    assert scores(story) == [(ImageState.FLAGGED, *said) for said in [(None, None), (None, None), (0.25, 3)]]


def flag_one(story: Story) -> None:
    story.submit()
    microbatch = story.started()
    outcomes = [Outcome(microbatch.images[0].id, ImageState.FLAGGED, safety_score=0.25, safety_concept=3)]
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, outcomes)
