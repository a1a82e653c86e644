"""Who is to blame when a pipeline fails: the image, which ends after three attempts of its own, or the host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from common.config import Settings
from common.db import transaction
from common.enums import ImageState, JobState
from common.queue import quarantines
from tests.support.stories import Story
from tests.support.workers import QUICK, MakeWorker, running, until, until_ended, until_published
from worker.models.trial import Fault
from worker.pipelines.base import Pipeline
from worker.pipelines.stub import GARBAGE


class Host:
    """A worker of this name, whose stub is as sick as its file says."""

    def __init__(self, make_worker: MakeWorker, folder: Path, name: str, **changes: Any) -> None:
        self.file = folder / f"{name}.sick"
        self.device = f"stub:0:{self.file}"
        self._make = lambda: make_worker(device=self.device, worker_name=name, trial_s=3600, **changes)
        self.name, self.worker = name, self._make()

    def restart(self) -> None:
        self.worker = self._make()

    def sicken(self, how: str = "1") -> None:
        self.file.write_text(how)

    def heal(self) -> None:
        self.file.unlink()

    def load(self) -> None:
        self.worker.render_thread.load("mini-zh").result()

    def run(self) -> None:
        self.worker.loop.run()
        until_published(self.worker)
        self.worker.heartbeat.beat()


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(make_worker: MakeWorker, tmp_path: Path) -> MakeHost:
    """Ready, with mini-zh in memory."""

    def make(name: str, **changes: Any) -> Host:
        host = Host(make_worker, tmp_path, name, **changes)
        host.load()
        host.worker.loop.is_ready = True
        host.worker.heartbeat.beat()
        return host

    return make


def quarantined(story: Story) -> list[Row[Any]]:
    return story.rows("SELECT * FROM quarantines ORDER BY name")


def make_trial_due(story: Story) -> None:
    with story.database.begin() as connection:
        connection.exec_driver_sql("UPDATE quarantines SET retry_at = now()")


def states(story: Story, *jobs: Any) -> list[tuple[str, int]]:
    return [(image.state, image.attempts) for job in jobs for image in story.images(job)]


# The image is to blame


def test_a_poison_image_fails_alone_with_its_reason(story: Story, make_host: MakeHost) -> None:
    """There is no other worker: all three attempts are this one's."""
    poison, neighbours = story.submit(prompt="圆 #poison"), story.submit(count=3)
    host = make_host("only")
    for attempts in (1, 2, 3):
        host.run()
        image = story.images(poison)[0]
        assert (image.attempts, image.error_code, image.failed_by) == (attempts, "poison", ["only"])
        story.skip_backoff()
    assert (story.job(poison).state, story.job(poison).error_code) == (JobState.FAILED, "poison")
    assert story.job(poison).error_message == "The pipeline fails at this image and at no other (ArithmeticError)."
    assert states(story, neighbours) == 3 * [(ImageState.STORED, 1)]
    assert quarantined(story) == []


def test_poison_is_tried_on_three_workers(story: Story, make_host: MakeHost) -> None:
    hosts = [make_host(name) for name in ("one", "two", "three")]
    poison = story.submit(prompt="圆 #poison")
    for _ in range(3):
        for host in hosts:
            host.run()
            story.skip_backoff()
    image = story.images(poison)[0]
    assert (image.state, image.attempts, sorted(image.failed_by)) == (ImageState.FAILED, 3, ["one", "three", "two"])
    assert quarantined(story) == []


def test_one_trial_is_enough_for_a_microbatch(
    story: Story, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host("only")
    trials = host.worker.models.trials
    tried, fault = [], trials.fault

    def counted(pipeline: Pipeline) -> Fault | None:
        tried.append(pipeline)
        return fault(pipeline)

    monkeypatch.setattr(trials, "fault", counted)
    job = story.submit(count=8, prompt="圆 #poison")
    host.run()
    assert len(tried) == 1
    assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 1)}


# The host is to blame


def test_a_sick_worker_counts_no_attempt_and_claims_nothing_more(story: Story, make_host: MakeHost) -> None:
    host = make_host("sick")
    host.sicken()
    jobs = [story.submit(count=8), story.submit(count=8)]
    host.run()
    host.run()
    assert states(story, *jobs) == 16 * [(ImageState.QUEUED, 0)]
    (found,) = quarantined(story)
    assert (found.name, found.model, found.code) == ("sick", "mini-zh", "trial_failed")
    assert found.reason == "The trial picture of mini-zh failed here (SickDevice)."
    leases = story.rows("SELECT outcome, started_at FROM leases")
    assert {lease.outcome for lease in leases} == {"released"}
    assert len([lease for lease in leases if lease.started_at]) <= 2  # one was claimed ahead
    well = make_host("well")
    well.run()
    assert {story.job(job).state for job in jobs} == {JobState.SUCCEEDED}


def test_what_a_sick_worker_rendered_before_is_stored(
    story: Story, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host("sick")
    pipeline = host.worker.models.get("mini-zh")
    generate, calls = pipeline.generate, []

    def sicken_after_three(requests: Any, on_step: Any) -> Any:
        calls.append(len(requests))
        if len(requests) == 4 or len(calls) > 4:
            raise ZeroDivisionError
        return generate(requests, on_step)

    monkeypatch.setattr(pipeline, "generate", sicken_after_three)
    job = story.submit(count=4)
    host.run()
    assert calls == [4, 1, 1, 1, 1, 1]  # together, alone, and the trial
    assert states(story, job) == 3 * [(ImageState.STORED, 1)] + [(ImageState.QUEUED, 0)]
    assert story.images(job)[3].failed_by is None


def test_a_healed_worker_comes_back_by_itself(story: Story, make_host: MakeHost) -> None:
    host = make_host("sick")
    host.sicken()
    job = story.submit()
    host.run()
    host.heal()
    host.run()
    assert states(story, job) == [(ImageState.QUEUED, 0)]  # the trial is not due
    make_trial_due(story)
    host.run()
    assert (quarantined(story), story.job(job).state) == ([], JobState.SUCCEEDED)


@pytest.mark.parametrize("how", ["1", "5"])
def test_a_sick_worker_stays_quarantined_by_its_trials(story: Story, make_host: MakeHost, how: str) -> None:
    """Also one that is sick in one call of five: several trial pictures must be good."""
    host = make_host("sick")
    host.sicken()
    job = story.submit()
    host.run()
    host.sicken(how)
    for trials in (1, 2):
        make_trial_due(story)
        host.run()
        assert quarantined(story)[0].trials == trials
    assert states(story, job) == [(ImageState.QUEUED, 0)]


def test_a_new_process_of_that_name_begins_quarantined(story: Story, make_host: MakeHost) -> None:
    host = make_host("sick")
    host.sicken()
    job = story.submit()
    host.run()
    host.heal()
    host.restart()
    host.worker.loop.run()  # before its first heartbeat
    assert states(story, job) == [(ImageState.QUEUED, 0)]
    make_trial_due(story)
    host.run()
    assert story.job(job).state == JobState.SUCCEEDED


def test_an_operator_brings_it_back(story: Story, make_host: MakeHost) -> None:
    host = make_host("sick")
    host.sicken()
    job = story.submit()
    host.run()
    host.heal()
    with transaction(story.database) as connection:
        quarantines.resume(connection, "sick")
    host.worker.heartbeat.beat()
    host.run()
    assert story.job(job).state == JobState.SUCCEEDED


def test_a_worker_that_often_fails_what_others_store_is_quarantined(story: Story, make_host: MakeHost) -> None:
    """Its trial pictures are good each time."""
    host, well = make_host("odd"), make_host("well")
    for _ in range(3):
        assert quarantined(story) == []
        story.submit(count=2, prompt="圆 #poison")
        host.run()
        with story.database.begin() as connection:
            connection.exec_driver_sql('UPDATE jobs SET recipe = recipe || \'{"prompt": "圆"}\'')
        story.skip_backoff()
        well.run()
        well.run()
        host.worker.heartbeat.beat()
        if quarantined(story):
            break
    (found,) = quarantined(story)
    assert (found.name, found.code) == ("odd", "fails_what_others_store")
    assert not story.rows("SELECT FROM images WHERE state <> 'stored'")


def test_poison_that_nobody_stores_quarantines_nobody(story: Story, make_host: MakeHost) -> None:
    hosts = [make_host("one"), make_host("two")]
    for _ in range(4):
        story.submit(count=2, prompt="圆 #poison")
        for host in hosts:
            host.run()
            story.skip_backoff()
    assert quarantined(story) == []


def test_a_lost_device_quarantines_the_name_before_the_process_ends(
    story: Story, settings: Settings, tmp_path: Path
) -> None:
    """The next process of that name claims nothing until its trial."""
    job = story.submit(prompt="圆 #lost")
    arguments = ("render", "--name", "lost")
    quick = {**QUICK, "TRIAL_S": "3600"}
    with running(tmp_path, settings, *arguments, **quick) as process:
        until(lambda: process.poll() is not None)
    (found,) = quarantined(story)
    assert (found.name, found.code, found.model) == ("lost", "device_lost", "mini-zh")
    other = story.submit(steps=3)
    with running(tmp_path, settings, "control", **quick), running(tmp_path, settings, *arguments, **quick) as process:
        until(lambda: story.images(job)[0].failed_by == ["lost"])
        until(lambda: story.rows("SELECT FROM workers WHERE name = 'lost' AND state = 'ready'"))
        assert states(story, other) == [(ImageState.QUEUED, 0)]
        make_trial_due(story)
        assert until_ended(story, other) == [JobState.SUCCEEDED]


# Silent garbage


def test_a_worker_that_renders_another_trial_picture_is_quarantined(story: Story, make_host: MakeHost) -> None:
    make_host("first")
    second = make_host("second")
    assert quarantined(story) == []
    second.sicken(GARBAGE)
    second.restart()
    second.load()
    second.run()
    (found,) = quarantined(story)
    assert (found.name, found.code) == ("second", "trial_differs")
    make_trial_due(story)
    second.run()
    assert quarantined(story)[0].trials == 1
    second.heal()
    make_trial_due(story)
    second.run()
    assert quarantined(story) == []


def test_an_operator_who_resumes_it_takes_its_picture_for_the_right_one(story: Story, make_host: MakeHost) -> None:
    """The first one was the one that was sick."""
    first = make_host("first")
    with story.database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trial_pictures")
    first.sicken(GARBAGE)
    first.restart()
    first.load()
    right = make_host("right")
    with transaction(story.database) as connection:
        quarantines.resume(connection, "right")
    right.restart()
    right.load()
    right.run()
    assert quarantined(story) == []
    first.restart()
    first.load()
    first.run()
    assert [found.name for found in quarantined(story)] == ["first"]


def test_a_sick_worker_is_quarantined_at_its_load_if_others_could_render_it(story: Story, make_host: MakeHost) -> None:
    make_host("well")
    sick = make_host("sick")
    sick.sicken()
    sick.restart()
    sick.load()
    sick.run()
    assert [found.code for found in quarantined(story)] == ["trial_failed"]
    assert sick.worker.models.refusals() == {}
