"""Sick workers and poison images: only the poison fails, only the sick are quarantined, and these come back alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.db import transaction
from common.queue import leases
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until
from worker.pipelines.base import TRIAL_PROMPT, ImageRequest, OnStep
from worker.pipelines.stub import SickDevice, StubPipeline
from worker.render.worker import RenderWorker

IMAGES = 4  # of a job


@dataclass(frozen=True)
class Scale:
    workers: int
    sick: dict[str, str]  # by name: how
    jobs: int
    poison: int
    steps: int
    step_s: float


SHORT = Scale(3, {"w0": "1", "w1": "5"}, jobs=25, poison=2, steps=4, step_s=0.01)
LONG = Scale(8, {"w0": "1", "w1": "5"}, jobs=500, poison=20, steps=20, step_s=0.02)


@contextmanager
def without_backoff(story: Story) -> Iterator[None]:
    """What the sweep does about it: images whose back-off is over may be claimed."""
    stopping = threading.Event()

    def repeat() -> None:
        while not stopping.wait(0.2):
            with transaction(story.database) as connection:
                leases.end_backoff(connection)

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            stopping.set()
            repeating.result()


@pytest.fixture
def lost_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each call that a sick device failed, but for trials."""
    lost, generate = [], StubPipeline.generate

    def counted(pipeline: StubPipeline, requests: Sequence[ImageRequest], on_step: OnStep) -> object:
        try:
            return generate(pipeline, requests, on_step)
        except SickDevice:
            if requests[0].recipe.prompt != TRIAL_PROMPT:
                lost.append(len(requests))
            raise

    monkeypatch.setattr(StubPipeline, "generate", counted)
    return lost


def submit(story: Story, scale: Scale) -> None:
    """The poison is among the good ones, in the same lane."""
    poison_every = scale.jobs // scale.poison
    for number in range(scale.jobs):
        story.submit(count=IMAGES, steps=scale.steps)
        if number % poison_every == poison_every // 2:
            story.submit(steps=scale.steps, prompt="圆 #poison")


def render_all(
    story: Story, scale: Scale, start: Callable[[Sequence[str]], list[RenderWorker]], names: Sequence[str]
) -> tuple[float, list[RenderWorker]]:
    """Seconds from the first claim until all has ended, and the workers."""
    submit(story, scale)
    with without_backoff(story):
        workers = start(names)
        began = time.monotonic()
        until(lambda: not story.rows("SELECT FROM jobs WHERE finished_at IS NULL LIMIT 1"), seconds=1200)
        return time.monotonic() - began, workers


def quarantined(story: Story) -> set[str]:
    return {row.name for row in story.rows("SELECT name FROM quarantines")}


@pytest.mark.parametrize("scale", [SHORT, pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(3000)])])
def test_only_poison_fails_and_only_the_sick_are_quarantined(
    story: Story, make_worker: MakeWorker, tmp_path: Path, lost_calls: list[int], scale: Scale
) -> None:
    files = {name: tmp_path / name for name in scale.sick}

    def start(names: Sequence[str]) -> list[RenderWorker]:
        made = []
        for name in names:
            device = f"stub:{scale.step_s}:{tmp_path / name}"
            made.append(make_worker(device=device, worker_name=name, models="mini-zh", beat_s=0.3, trial_s=2))
            made[-1].render_thread.load("mini-zh").result()
        for name, how in scale.sick.items():
            if name in names:
                files[name].write_text(how)  # after the load
        for worker in made:
            worker.start()
        return made

    names = [f"w{number}" for number in range(scale.workers)]
    healthy_s = 0.0
    if scale == LONG:
        healthy_s, healthy = render_all(story, scale, start, names[len(scale.sick) :])
        for worker in healthy:
            worker.loop.drain()
            worker.heartbeat.stop()
        with story.database.begin() as connection:
            connection.exec_driver_sql("TRUNCATE images, jobs, leases, lanes CASCADE")
    sick_s, _ = render_all(story, scale, start, names)

    ends = story.rows("""
        SELECT images.state, error_code, recipe ->> 'prompt' LIKE '%#poison' AS is_poison, count(*) AS images,
               max(attempts) AS attempts, min(cardinality(failed_by)) AS workers
        FROM images JOIN (SELECT id, recipe FROM jobs) AS jobs ON jobs.id = job_id GROUP BY 1, 2, 3 ORDER BY 3
    """)
    print(f"\n{scale}: {sick_s:.1f} s, six healthy ones {healthy_s:.1f} s; calls lost: {len(lost_calls)}; {ends}")
    assert [(row.state, row.error_code, row.is_poison, row.images) for row in ends] == [
        ("stored", None, False, IMAGES * scale.jobs),
        ("failed", "poison", True, scale.poison),
    ]
    assert ends[1].attempts == 3
    until(lambda: quarantined(story) == set(scale.sick))
    assert len(lost_calls) <= 60
    if scale == LONG:
        assert healthy_s / sick_s >= 0.85
    for file in files.values():
        file.unlink()
    until(lambda: not quarantined(story))
    assert not story.rows("SELECT FROM images WHERE state IN ('queued', 'running')")
