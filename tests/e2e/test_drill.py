"""`huafang doctor --drill` on a local farm of two stub workers, with short leases."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import run_process

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("home")
    intervals = {"HUAFANG_LEASE_S": "2", "HUAFANG_BEAT_S": "0.5", "HUAFANG_SWEEP_S": "0.5"}
    environment = {"HUAFANG_HOME": str(home), "HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment |= {"HUAFANG_MODELS": "mini-zh", **intervals}
    done = run_process("up", "--device=stub:0.02", "--workers=2", environment=environment)
    assert done.code == 0, done.err
    yield environment
    assert run_process("down", environment=environment).code == 0


def processes(environment: dict[str, str]) -> dict[str, tuple[str, int]]:
    status = run_process("status", "--format=json", environment=environment).json
    return {process["name"]: (process["state"], process["pid"]) for process in status["processes"]}


def test_a_worker_killed_in_the_middle_of_a_job_loses_nothing(environment: dict[str, str]) -> None:
    before = processes(environment)
    done = run_process("doctor", "--drill", "--format=json", environment=environment)
    assert done.code == 0, done.out + done.err
    stages = [found["says"] for found in json.loads(done.out) if found["about"] == "drill"]
    (killed,) = [found for stage in stages if (found := re.match(r"(worker-\d) \(process (\d+)\) was killed", stage))]
    name, pid = killed.groups()
    assert before[name] == ("running", int(pid))
    assert stages[-1] == "nothing was lost: 1 of the pictures took 2 attempts"
    after = processes(environment)
    assert {state for state, _ in after.values()} == {"running"}
    assert {other for other, was in before.items() if was != after[other]} == {name}
    shown = run_process("jobs", "ls", "--format=json", environment=environment).json
    assert [(job["state"], [image["attempts"] for image in job["images"]]) for job in shown] == [("succeeded", [2])]


def test_only_the_local_farm_can_be_drilled(environment: dict[str, str]) -> None:
    """A farm by another address is not the local one."""
    before = processes(environment)
    url = run_process("status", "--format=json", environment=environment).json["url"].replace("127.0.0.1", "localhost")
    key = (Path(environment["HUAFANG_HOME"]) / "admin-key").read_text().strip()
    done = run_process("--url", url, "--key", key, "doctor", "--drill", "--format=json", environment=environment)
    assert done.code == 1
    assert [found["verdict"] for found in json.loads(done.out) if found["about"] == "drill"] == ["fail"]
    assert processes(environment) == before
