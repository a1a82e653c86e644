"""The storm: a few faults in the suite, every fault in the long form. Three-second leases, no promise broken."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for S3 forgets all when it is killed")

HOME = Path(__file__).resolve().parents[2]


def storm(home: Path, *arguments: str, seconds: float) -> dict[str, Any]:
    """A storm of its own, in a process of its own: the servers it kills are nobody else's."""
    command = [sys.executable, "-m", "tests.faults.storm", "--json", "--home", str(home), *arguments]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=seconds)
    assert done.stdout, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


SHORT = "worker_killed,worker_frozen,frozen_between_store_and_publish,control_killed,api_killed,cancelled_while_running"
SHORT += ",postgres_restarted,redis_killed,s3_down"


@pytest.mark.timeout(600)
def test_every_promise_is_kept_while_processes_and_services_die(tmp_path: Path) -> None:
    report = storm(tmp_path, "--jobs", "70", "--minutes", "0.3", "--seed", "7", "--faults", SHORT, seconds=540)
    assert report["examples"] == {}
    assert report["never_hit"] == []
    assert report["jobs_answered_201"] >= 60
    assert report["ok"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_promise_is_kept_in_a_storm_that_hits(tmp_path: Path) -> None:
    report = storm(tmp_path, "--jobs", "240", "--minutes", "1.5", "--seed", "7", seconds=840)
    assert report["examples"] == {}
    assert report["never_hit"] == []
    assert report["jobs_answered_201"] >= 240
    assert report["ok"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_is_rendered_in_vain_in_good_weather(tmp_path: Path) -> None:
    report = storm(tmp_path, "--jobs", "60", "--minutes", "0.3", "--seed", "7", "--faults", "none", seconds=540)
    assert report["ok"]
    assert report["jobs_answered_201"] >= 60
    assert (report["renders_wasted"], report["leases"].get("lost", 0)) == (0, 0)
