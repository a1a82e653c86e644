"""Files that take long to read although nothing comes of them: a cancel, a slice and a stop are obeyed soon."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from common.batches import lifecycle as batches
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.prompt_files import lines
from tests.support.batch_stories import PLAN, BatchStory
from tests.support.stories import Story
from tests.support.workers import QUICK, log_of, running, until
from worker.control import batch_expander, chunk_parts

BLANK = 40_000_000  # lines, which take more than five seconds to read


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_parts, "CHUNK_S", 0)
    monkeypatch.setattr(lines, "STEP_S", 0.01)


def batch_of_file(farm: BatchStory, data: bytes, format: str = "txt", **plan: object) -> UUID:
    upload, tenant = farm.upload(data, format), farm.tenant()
    with transaction(farm.database) as connection:
        return batches.submit(connection, tenant, upload, PLAN.model_copy(update=plan))


@pytest.mark.parametrize("format", ["txt", "csv"])
def test_a_batch_that_is_cancelled_while_its_file_is_checked_is_left_at_once(
    farm: BatchStory, aside: ThreadPoolExecutor, format: str
) -> None:
    data = (b"prompt\n" if format == "csv" else b"") + b"\n" * (BLANK // 2)
    batch_id = batch_of_file(farm, data, format)
    work = aside.submit(farm.expander.work, batch_id, 60)
    until(lambda: farm.batch(batch_id).offset > 0)
    farm.cancel_batch(batch_id)
    began = time.monotonic()
    assert not work.result(30)
    assert time.monotonic() - began < 2
    assert farm.batch(batch_id).offset < len(data)


def test_a_control_worker_that_is_asked_to_end_leaves_a_file_in_the_middle(
    farm: BatchStory, settings: Settings, tmp_path: Path
) -> None:
    batch_id = batch_of_file(farm, b"\n" * BLANK)
    with running(tmp_path, settings, "control", **QUICK) as control:
        assert Broker(settings).advance(batch_id)
        until(lambda: farm.batch(batch_id).offset > 0)
        control.terminate()
        assert control.wait(60) == 0
    assert "Traceback" not in log_of(control)
    left_at = farm.batch(batch_id).offset
    assert left_at < BLANK
    assert farm.expander.work(batch_id, 0)  # another one goes on from there
    assert farm.batch(batch_id).offset > left_at


def test_a_file_is_read_on_where_a_slice_ended_though_nothing_came_of_it(farm: BatchStory, small_steps: None) -> None:
    batch_id = batch_of_file(farm, b"\n" * 100_000 + "红色的圆形\n".encode() + b"\n" * 100_000)
    seen = [0]
    while farm.expander.work(batch_id, 0):
        now = farm.batch(batch_id)
        if now.checked_at:
            break
        seen.append(now.offset)
    assert len(seen) > 2
    assert seen == sorted(set(seen))
    assert not farm.expander.work(batch_id, 60)
    assert (farm.batch(batch_id).prompts, farm.batch(batch_id).jobs, farm.batch(batch_id).state) == (1, 1, "running")


@pytest.mark.parametrize(
    ("data", "skip_bad", "says"),
    [
        (b"\n" * 100_000, False, "Its file has no prompts."),
        (b"\n" * 100_000, True, "Its file has no prompts."),
        (b"{}\n" + b"\n" * 100_000, True, "None of its lines is right. Line 1: prompt is missing."),
    ],
)
def test_a_file_without_prompts_ends_when_its_last_chunk_is_blank(
    farm: BatchStory, small_steps: None, data: bytes, skip_bad: bool, says: str
) -> None:
    batch_id = batch_of_file(farm, data, "jsonl", skip_bad=skip_bad)
    while farm.expander.work(batch_id, 0):
        pass
    found = farm.batch(batch_id)
    assert (found.state, found.error_message) == ("ended", says)


def test_a_line_that_takes_too_long_is_refused(farm: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((chunk_parts, "CHUNK_S"), (batch_expander, "STILL_S"), (lines, "STEP_S")):
        monkeypatch.setattr(module, name, 0)
    batch_id = batch_of_file(farm, b"a\n" + b"x" * 9_000_000)
    assert not farm.expander.work(batch_id, 60)
    assert farm.batch(batch_id).error_message == "Line 2: it could not be read in 0 seconds; split the file."
