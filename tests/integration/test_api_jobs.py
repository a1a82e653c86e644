"""Jobs over HTTP, through a real uvicorn."""

import httpx

from tests.serving import PROMPT
from tests.stories import Story


def test_a_submitted_job_can_be_looked_at(client: httpx.Client, story: Story) -> None:
    answer = client.post("/v1/jobs", json=PROMPT | {"count": 2, "seed": 7, "tier": "interactive"})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["Location"].endswith(f"/v1/jobs/{job['id']}")
    assert client.get(answer.headers["Location"]).json() == job
    assert (job["state"], job["tier"], job["warnings"], job["position"]) == ("queued", "interactive", [], 0)
    assert [image["seed"] for image in job["images"]] == [7, 8]
    assert story.job(job["id"]).request_id == answer.headers["X-Request-Id"]
