"""The device of a worker: a GPU that it cannot use, what it reports, and one process for each GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.config import Settings
from embedded.farm import variables
from tests.support.nvml import GIB, FakeNvml
from tests.support.stories import Story
from tests.support.workers import QUICK, MakeWorker, log_of, ready_workers, running, until
from worker.__main__ import report_unusable
from worker.devices.readings import DeviceMonitor, Gpu

# As `worker.__main__` runs it after it has counted the GPUs.
SERVE_EACH = """
import sys
from common import log
from worker.devices.processes import serve_each
log.set_up()
sys.exit(serve_each(["stub:0.01", "stub:0.02"], "host", ["--models", "mini-zh"]))
"""

READ_WORKERS = "SELECT name, state, reason, models FROM workers ORDER BY name, id"


@pytest.fixture
def with_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi lists a GPU, which torch cannot use."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: GPU-0b5c)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("with_gpu")
def test_a_worker_beside_a_gpu_that_it_cannot_use_does_not_start_and_says_so(
    story: Story, settings: Settings, tmp_path: Path
) -> None:
    with running(tmp_path, settings, "render", "--name", "gpu-1", DEVICE="auto") as worker:
        assert worker.wait(250) == 1
        event, sentence = log_of(worker).splitlines()
    assert "device_unusable" in event
    assert sentence.startswith("This machine has an NVIDIA GPU (")
    assert sentence.endswith("or render on the CPU with HUAFANG_DEVICE=cpu.")
    [row] = story.rows(READ_WORKERS)
    assert (row.name, row.state, row.reason, row.models) == ("gpu-1", "stopped", sentence, [])
    # However often its supervisor starts it again, it is one worker.
    report_unusable(settings.model_copy(update={"worker_name": "gpu-1"}), "as before")
    assert [row.reason for row in story.rows(READ_WORKERS)] == ["as before"]


@pytest.mark.usefixtures("with_gpu")
def test_a_worker_that_is_told_to_takes_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "devices", "--device", "cpu"], stdout=subprocess.PIPE, check=True
    )
    found = json.loads(done.stdout)
    assert (found["device"], found["unused_gpu"]) == ("cpu", None)


@pytest.mark.usefixtures("with_gpu")
def test_cuda_all_without_a_gpu_is_refused_in_one_sentence(story: Story, settings: Settings, tmp_path: Path) -> None:
    with running(tmp_path, settings, "render", "--device", "cuda:all") as worker:
        assert worker.wait(250) == 1
        assert log_of(worker).splitlines()[-1] == "There is no device cuda here, only cpu."


def test_a_heartbeat_brings_what_the_device_tells(story: Story, make_worker: MakeWorker) -> None:
    worker, nvml = make_worker(), FakeNvml(memory_errors=2)
    worker.devices = DeviceMonitor(Gpu(nvml, "cuda:0", "0b5c").read, 0.05)
    worker.start()

    def reported() -> list[Mapping[str, Any]]:
        return [device for row in story.rows("SELECT device_status FROM workers") for device in row.device_status]

    [device] = until(reported)
    assert {name: device[name] for name in ("name", "memory_used", "utilisation", "temperature_c")} == {
        "name": "cuda:0",
        "memory_used": 9 * GIB,
        "utilisation": 98,
        "temperature_c": 64,
    }
    assert "2 memory errors" in device["errors"][0]
    nvml.temperature = 71
    until(lambda: [device["temperature_c"] for device in reported()] == [71])


# One process for each GPU


@contextmanager
def serving_each(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    given = {f"HUAFANG_{name}": value for name, value in QUICK.items()}
    with log.open("wb") as file:
        parent = subprocess.Popen(
            [sys.executable, "-c", SERVE_EACH], env={**os.environ, **variables(settings), **given}, stderr=file
        )
    try:
        yield parent
    finally:
        parent.kill()
        parent.wait(10)


def test_each_device_has_a_worker_of_its_own_name(story: Story, settings: Settings, tmp_path: Path) -> None:
    with serving_each(settings, tmp_path / "log") as parent:
        until(lambda: len(ready_workers(story)) == 2, 200)
        assert sorted(row["name"] for row in ready_workers(story)) == ["host-stub:0.01", "host-stub:0.02"]
        assert all(row["models"] == ["mini-zh"] for row in ready_workers(story))
        parent.terminate()
        assert parent.wait(60) == 0
    assert [row.state for row in story.rows(READ_WORKERS)] == ["stopped", "stopped"]
