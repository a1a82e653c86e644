"""Rows that no code foresees: a worker that fails at one counts an attempt, so its image ends, and no other fails."""

import io
from typing import Any
from uuid import UUID

import httpx
import pytest
from PIL import Image
from sqlalchemy import text

from common import uploads
from common.config import Settings
from common.db import new_id, transaction
from common.enums import ImageState, JobState
from common.storage import Storage, sha256, upload_key
from common.uploads import Upload
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until_published
from worker.render.worker import RenderWorker


def change(story: Story, statement: str, **values: Any) -> None:
    with story.database.begin() as connection:
        connection.execute(text(statement), values)


def work(story: Story, worker: RenderWorker, runs: int = 6) -> None:
    """Render all there is; what fails is tried again at once."""
    for _ in range(runs):
        worker.loop.run()
        until_published(worker)
        story.skip_backoff()


def uploaded(story: Story, settings: Settings, data: bytes) -> UUID:
    """A picture as its row says."""
    upload = Upload(new_id(), "png", len(data), sha256(data), width=64, height=64)
    Storage(settings).ensure_bucket()
    Storage(settings).put(upload_key(upload.id, "png"), data, "image/png")
    tenant_id = story.tenant()
    with transaction(story.database) as connection:
        uploads.record(connection, tenant_id, upload)
    return upload.id


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


def reference_of(message: str) -> str:
    return message.removesuffix(".").split()[-1]


def test_an_image_that_the_worker_fails_at_ends_and_fails_no_neighbour(
    story: Story, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, neighbour = story.submit(), story.submit(count=3)
    change(story, """UPDATE jobs SET recipe = recipe || '{"seeds": []}' WHERE id = :job""", job=poisoned)
    work(story, make_worker())
    (image,) = story.images(poisoned)
    assert (image.state, image.attempts, image.error_code) == (ImageState.FAILED, 3, "internal_error")
    (found,) = [one for one in caplog.records if reference_of(image.error_message) in one.getMessage() and one.exc_info]
    assert str(poisoned) in found.getMessage()
    assert (story.job(poisoned).state, story.job(poisoned).error_code) == (JobState.FAILED, "internal_error")
    assert story.job(neighbour).state == JobState.SUCCEEDED
    assert {image.attempts for image in story.images(neighbour)} == {2}  # once in its company, once alone


@pytest.mark.parametrize(
    ("refused", "end"),
    [(("stored",), ImageState.FAILED), (("stored", "failed"), ImageState.RUNNING)],  # the sweep reports its lease
)
def test_an_image_that_cannot_be_published_is_rendered_three_times(
    story: Story, make_worker: MakeWorker, refused: tuple[str, ...], end: ImageState
) -> None:
    poisoned, neighbour = story.submit(), story.submit(count=3)
    check = f"job_id <> '{poisoned}' OR state NOT IN ({', '.join(map(repr, refused))})"
    change(story, f"ALTER TABLE images ADD CONSTRAINT unforeseen CHECK ({check})")
    work(story, make_worker())
    (image,) = story.images(poisoned)
    assert (image.state, image.attempts) == (end, 3)
    assert story.job(neighbour).state == JobState.SUCCEEDED
    assert story.claim() is None


def test_a_recipe_that_cannot_be_read_stops_no_worker(
    story: Story, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, neighbour = story.submit(), story.submit(count=3)
    change(story, """UPDATE jobs SET recipe = recipe || '{"steps": "many"}' WHERE id = :job""", job=poisoned)
    work(story, make_worker())
    (image,) = story.images(poisoned)
    assert (image.state, image.attempts, image.error_code) == (ImageState.FAILED, 3, "internal_error")
    assert reference_of(image.error_message) in caplog.text
    assert [image.attempts for image in story.images(neighbour)] == 3 * [1]
    assert story.job(neighbour).state == JobState.SUCCEEDED


def test_a_source_that_is_no_picture_fails_its_image_alone(
    client: httpx.Client, story: Story, settings: Settings, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"prompt": "蓝色的圆形", "steps": 10, "seed": 1, "strength": 0.5}
    sources = [uploaded(story, settings, data) for data in (b"no picture", picture())]
    poisoned, neighbour = [
        UUID(client.post("/v1/jobs", json={**job, "source": str(source)}).raise_for_status().json()["id"])
        for source in sources
    ]
    work(story, make_worker())
    (image,) = story.images(poisoned)
    assert (image.state, image.attempts, image.error_code) == (ImageState.FAILED, 3, "internal_error")
    assert reference_of(image.error_message) in caplog.text
    assert [image.attempts for image in story.images(neighbour)] == [1]
    assert story.job(neighbour).state == JobState.SUCCEEDED
