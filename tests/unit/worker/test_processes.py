"""One process for each device: what ends is started again, and all end with their parent."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from worker.devices.processes import name_of

CHILD = """
import os, sys, time
from worker.devices.processes import end_with
end_with(int(sys.argv[2]))
sys.stdout.write(f"{sys.argv[1]} {os.getpid()}\\n")  # at once: both write to one pipe
sys.stdout.flush()
time.sleep(600)
"""
PARENT = """
import os, sys
from common import log
from worker.devices.processes import Processes
log.set_up()
child = [sys.executable, "-c", sys.argv[1]]
sys.exit(Processes({name: [*child, name, str(os.getpid())] for name in ("a", "b")}).run())
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield parent
    parent.kill()
    parent.wait(60)


def started(parent: subprocess.Popen[str], count: int) -> dict[str, psutil.Process]:
    """The next processes that say they run, by name."""
    assert parent.stdout
    lines = [parent.stdout.readline().split() for _ in range(count)]
    return {name: psutil.Process(int(pid)) for name, pid in lines}


def all_end(processes: dict[str, psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(list(processes.values()), 60)
    return not alive


def test_a_process_that_ends_is_started_again_and_the_other_goes_on(parent: subprocess.Popen[str]) -> None:
    first = started(parent, 2)
    assert first.keys() == {"a", "b"}
    first["a"].kill()
    second = started(parent, 1)
    assert second.keys() == {"a"}
    assert second["a"].pid != first["a"].pid
    assert first["b"].is_running()
    parent.terminate()
    _, log = parent.communicate(timeout=60)
    assert "worker_process_ended name=a code=-9 again_s=1.000" in log


def test_a_process_that_ends_soon_after_each_start_waits_ever_longer(parent: subprocess.Popen[str]) -> None:
    processes = started(parent, 2)
    for _ in range(2):
        processes["a"].kill()
        processes |= started(parent, 1)
    parent.terminate()
    _, log = parent.communicate(timeout=60)
    assert re.findall(r"name=a code=-9 again_s=(\S+)", log) == ["1.000", "2.000"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_ends_all(parent: subprocess.Popen[str], number: signal.Signals) -> None:
    processes = started(parent, 2)
    parent.send_signal(number)
    assert parent.wait(60) == 0
    assert all_end(processes)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_all_end_with_a_parent_that_is_killed(parent: subprocess.Popen[str]) -> None:
    processes = started(parent, 2)
    parent.kill()
    assert all_end(processes)


def test_a_worker_is_called_by_its_host_and_device_unless_it_has_a_name() -> None:
    assert name_of("gpu-1", "cuda:0") == "gpu-1"
    assert name_of(None, "cuda:0").endswith("-cuda:0")
