"""`python -m worker` as a process: what it imports, when it refuses to start, and how it ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from common.config import Settings
from common.db import transaction
from common.enums import ImageState, JobState
from tests.support.stories import CATALOG, Story
from tests.support.workers import QUICK, log_of, ready_workers, running, until, until_ended

SLOW = "stub:0.05"  # seconds a step


def test_only_a_worker_that_renders_with_torch_loads_it() -> None:
    code = "import worker.tasks, worker.__main__, sys, json; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"torch", "diffusers", "transformers"} & set(loaded)
    assert "celery" in loaded


# Starting


@pytest.mark.parametrize("kind", ["render", "control"])
def test_a_database_that_is_not_migrated_is_refused_in_one_sentence(
    settings: Settings, database: Engine, tmp_path: Path, kind: str
) -> None:
    with transaction(database) as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    with running(tmp_path, settings, kind) as worker:
        assert worker.wait(60) == 1
        last = log_of(worker).splitlines()[-1]
    assert last == "The database has no tables yet: run `huafang admin migrate`."
    assert "Traceback" not in log_of(worker)


def test_a_model_that_the_catalogue_does_not_have_is_refused_in_one_sentence(
    settings: Settings, tmp_path: Path
) -> None:
    with running(tmp_path, settings, "render", "--models", "mini-zh,maxi-zh") as worker:
        assert worker.wait(60) == 1
    (line,) = log_of(worker).splitlines()
    assert "there is no model 'maxi-zh'" in line


def test_the_command_line_names_device_models_and_worker(story: Story, settings: Settings, tmp_path: Path) -> None:
    arguments = ("render", "--device", "stub", "--models", "mini-zh", "--name", "阿画")
    with running(tmp_path, settings, *arguments, DEVICE="cpu", **QUICK) as worker:
        row = until(lambda: ready_workers(story))[0]
        assert (row["name"], row["models"], row["class"]["device"]) == ("阿画", ["mini-zh"], "stub")
        worker.terminate()
        assert worker.wait(60) == 0
    assert ready_workers(story) == []


def test_a_model_that_is_refused_does_not_stop_the_others(story: Story, settings: Settings, tmp_path: Path) -> None:
    """With the real pipeline: the broken model's jobs wait, uncounted, and the worker says why."""
    catalog = settings.catalog.read_text().replace('"./mini-zh"', f'"{CATALOG.get("mini-zh").source_path}"')
    entry = catalog[catalog.index("[models.mini-zh]") : catalog.index("[models.mini-zh.vocabulary]")]
    broken = entry.replace("[models.mini-zh]", "[models.broken]").replace(
        str(CATALOG.get("mini-zh").source_path), "./none"
    )
    (tmp_path / "catalog.toml").write_text(f"{catalog}\n{broken}")
    changes = {"CATALOG": str(tmp_path / "catalog.toml"), "DEVICE": "cpu", "TORCH_THREADS": "1", **QUICK}
    waits, goes = story.submit(), story.submit(tenant="other")
    with story.database.begin() as connection:  # the catalogue of the tests has no such model
        connection.exec_driver_sql(
            "UPDATE jobs SET recipe = jsonb_set(recipe, '{model}', '\"broken\"') WHERE id = %s", (waits,)
        )
        connection.exec_driver_sql(
            "UPDATE lanes SET model = 'broken', compatibility = 'broken' FROM images"
            " WHERE images.lane_id = lanes.id AND images.job_id = %s",
            (waits,),
        )
    with running(tmp_path, settings, "render", "--models", "broken,mini-zh", **changes) as worker:
        assert until_ended(story, goes, seconds=90) == [JobState.SUCCEEDED]  # torch takes its time
        row = until(lambda: ready_workers(story))[0]
        assert row["models"] == ["mini-zh"]
        assert "there is no folder" in row["refusals"]["broken"]
    assert {(image.state, image.attempts) for image in story.images(waits)} == {(ImageState.QUEUED, 0)}
    assert "Traceback" not in log_of(worker)


# Ending


def test_sigterm_releases_what_is_rendering_and_another_worker_finishes_it(
    story: Story, settings: Settings, tmp_path: Path
) -> None:
    job = story.submit(count=2, steps=100)
    with running(tmp_path, settings, "render", DEVICE=SLOW, DRAIN_S="1", **QUICK) as first:
        until(lambda: story.job(job).state == JobState.RUNNING)
        first.terminate()
        assert first.wait(60) == 0
        assert {(image.state, image.attempts) for image in story.images(job)} == {(ImageState.QUEUED, 0)}
    with running(tmp_path, settings, "render", **QUICK):
        assert until_ended(story, job) == [JobState.SUCCEEDED]
    assert {image.attempts for image in story.images(job)} == {1}
    assert "Traceback" not in log_of(first)


def test_what_a_killed_worker_held_is_rescued_by_the_sweep(story: Story, settings: Settings, tmp_path: Path) -> None:
    job = story.submit(count=2, steps=100)
    with running(tmp_path, settings, "control", **QUICK) as control:
        with running(tmp_path, settings, "render", DEVICE=SLOW, **QUICK) as first:
            until(lambda: story.job(job).state == JobState.RUNNING)
            first.send_signal(signal.SIGKILL)
        with running(tmp_path, settings, "render", **QUICK):
            assert until_ended(story, job) == [JobState.SUCCEEDED]
        control.terminate()
        assert control.wait(60) == 0
    assert {image.attempts for image in story.images(job)} == {2}
    assert "leases_rescued" in log_of(control)
