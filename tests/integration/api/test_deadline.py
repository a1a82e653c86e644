"""`Cancel-After`: a job that must be done by then or not at all."""

import httpx
import pytest
from sqlalchemy import text

from tests.support.serving import PROMPT
from tests.support.stories import Story


def deadline_s(story: Story, job_id: str) -> float | None:
    """From the submission on."""
    statement = text("SELECT extract(epoch FROM deadline - created_at) FROM jobs WHERE id = :id")
    with story.database.connect() as connection:
        return connection.execute(statement, {"id": job_id}).scalar_one()


@pytest.mark.parametrize("seconds", [1, 604_800])
def test_a_job_has_the_deadline_that_the_header_asks_for(client: httpx.Client, story: Story, seconds: int) -> None:
    answer = client.post("/v1/jobs", json=PROMPT, headers={"Cancel-After": str(seconds)})
    assert answer.status_code == 201
    assert deadline_s(story, answer.json()["id"]) == seconds


def test_a_job_has_none_without_the_header(client: httpx.Client, story: Story) -> None:
    assert deadline_s(story, client.post("/v1/jobs", json=PROMPT).json()["id"]) is None


def test_a_job_that_is_not_done_by_then_says_so(client: httpx.Client, story: Story) -> None:
    job = client.post("/v1/jobs", json=PROMPT, headers={"Cancel-After": "60"}).json()["id"]
    assert story.expire() == []
    with story.database.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET deadline = now()")
    story.expire()
    shown = client.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["error"]["code"]) == ("failed", "expired")
    assert "deadline" in shown["error"]["message"]


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
@pytest.mark.parametrize("wrong", ["0", "-1", "604801", "1.5", "soon", "", "NaN", "1e3", "٣", "9" * 30])
def test_a_header_that_is_no_number_of_seconds_is_refused_by_its_name(
    client: httpx.Client, story: Story, wrong: str, query: str
) -> None:
    answer = client.post(f"/v1/jobs{query}", json=PROMPT, headers={"Cancel-After": wrong.encode()})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == ["Cancel-After"]
    assert story.count("jobs") == 0


def test_the_documentation_has_the_header(client: httpx.Client) -> None:
    parameters = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["parameters"]
    (found,) = [one for one in parameters if one["in"] == "header" and one["name"].lower() == "cancel-after"]
    assert "expired" in found["description"]
