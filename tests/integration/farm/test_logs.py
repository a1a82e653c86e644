"""No log has a prompt in it: not when all goes well, and not in the traceback of what nobody foresaw."""

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import text

from common.enums import ImageState
from common.log import LineFormatter
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until_published

SECRET = "绝密的红色圆形"


class Lines(logging.Handler):
    """All that the processes would write."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(LineFormatter())
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{self.format(record)}\n"


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def assert_kept(lines: Lines, *events: str) -> None:
    """Whatever way the prompt may be written: as it is, or as JSON escapes it."""
    missing = [event for event in events if f" {event} " not in lines.text]
    assert missing == [], lines.text
    for spelled in (SECRET, json.dumps(SECRET).strip('"'), SECRET[:4]):
        assert spelled not in lines.text


def test_what_goes_well_or_is_refused(
    client: httpx.Client, story: Story, make_worker: MakeWorker, lines: Lines
) -> None:
    job = client.post("/v1/jobs", json={"prompt": SECRET, "negative_prompt": SECRET}).json()["id"]
    assert client.post("/v1/jobs", json={"prompt": SECRET * 100}).status_code == 422
    assert client.post("/v1/jobs", json={"prompt": SECRET, "steps": "many"}).status_code == 422
    broken = {"content": f'{{"prompt": "{SECRET}"', "headers": {"Content-Type": "application/json"}}
    assert client.post("/v1/jobs", **broken).status_code == 400  # type: ignore[arg-type]
    assert client.get("/v1/jobs", params={"q": SECRET}).json()["items"][0]["id"] == job
    assert client.post("/v1/batches", json={"prompts": [SECRET]}).status_code == 201
    for suffix in ("", "#flagged", "#unchecked", "#nan", "#poison", "#oom"):
        story.submit(prompt=f"{SECRET} {suffix}")
    worker = make_worker()
    worker.loop.start()
    for _ in range(8):
        worker.loop.run()
        until_published(worker)
        story.skip_backoff()
    ended = {row.state for row in story.rows("SELECT state FROM images")}
    assert ended >= {ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED}
    assert_kept(lines, "job_submitted", "render_failed", "image_failed")


def test_a_statement_that_fails(client: httpx.Client, story: Story, lines: Lines) -> None:
    """The traceback has the statement, but neither its parameters nor the row that Postgres shows."""
    with story.database.begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD CONSTRAINT never CHECK (recipe IS NULL) NOT VALID"))
    assert client.post("/v1/jobs", json={"prompt": SECRET}).status_code == 500
    with story.database.begin() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    assert client.post("/v1/jobs", json={"prompt": SECRET}).status_code == 500
    assert client.get("/v1/jobs", params={"q": SECRET}).status_code == 500
    assert_kept(lines, "request_failed")
    assert "INSERT INTO jobs" in lines.text


def test_a_row_that_cannot_be_read(story: Story, make_worker: MakeWorker, lines: Lines) -> None:
    story.submit(prompt=SECRET)
    with story.database.begin() as connection:
        connection.execute(text('UPDATE jobs SET recipe = recipe || \'{"steps": "many"}\''))
    worker = make_worker()
    worker.loop.start()
    worker.loop.run()
    until_published(worker)
    assert_kept(lines)
    assert "Traceback" in lines.text
