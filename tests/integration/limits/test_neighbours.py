"""A tenant beside one that submits as fast as it can, with the same limits: it is refused nothing and has its turn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.limits import limit
from tests.support.serving import Api
from tests.support.stories import Story

JOB = {"model": "mini-zh", "width": 64, "height": 64, "steps": 20}
LIMITS = {
    "waiting_images": 300,
    "waiting_interactive": 4,
    "preparing_batches": 1,
    "requests_a_minute": 600,
    "open_streams": 16,
}


@contextmanager
def greedy(api: Api, file: Path) -> Iterator[None]:
    """A tenant of that name, which submits meanwhile. The file says what it was answered."""
    with api.client("greedy") as client:
        key = client.headers["Authorization"].removeprefix("Bearer ")
    command = [sys.executable, "-m", "bench.harness.greedy", api.url, str(JOB["model"]), str(file)]
    process = subprocess.Popen(command, env={**os.environ, "GREEDY_KEY": key})
    try:
        yield
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def limits_reached(file: Path) -> set[str]:
    answers = json.loads(file.read_text()) if file.exists() else {}
    return {name for name in LIMITS if f"refused: {name}" in answers}


def accepted(client: httpx.Client, path: str, **body: object) -> str:
    """What was created, although the machine may be too slow for a try (503)."""
    while (answer := client.post(path, json=body)).status_code == 503:
        pass
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_beside_a_tenant_at_all_its_limits_nothing_of_another_is_refused_and_it_has_its_turn(
    story: Story, api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "answers.json"
    for tenant in ("greedy", "quiet"):
        limit(story, tenant, **LIMITS)
    with greedy(api, file), api.client("quiet") as quiet:
        deadline = time.monotonic() + 100
        while limits_reached(file) < LIMITS.keys():
            accepted(quiet, "/v1/jobs", prompt="红色的圆形", tier="bulk", **JOB)
            assert quiet.get("/v1/jobs").status_code in (200, 503)
            assert time.monotonic() < deadline, file.read_text()
        accepted(quiet, "/v1/batches", prompts=["蓝色的三角形"], defaults=JOB)
        urgent = accepted(quiet, "/v1/jobs", prompt="绿色的心形", tier="interactive", **JOB)
        usual = accepted(quiet, "/v1/jobs", prompt="绿色的心形", **JOB | {"width": 96})  # no call can render both
    turns = [story.started(resident=("mini-zh",)) for _ in range(4)]
    assert {urgent, usual} <= {str(image.job_id) for turn in turns for image in turn.images}
