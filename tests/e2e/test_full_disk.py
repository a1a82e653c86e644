"""The local farm on a disk that fills up: it waits, says so, and goes on when there is room, without a command."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from embedded.instance import Instance, find_instance
from tests.support.command_line import HUAFANG
from tests.support.small_disk import SmallDisk, small_disk

DISK_BYTES = 420 * 2**20  # a farm starts with 300 MB free
JOBS, COUNT = 5, 4
PROGRAMS = {"postgres", "valkey", "s3", "api", "control", "worker-1"}

pytestmark = [pytest.mark.needs("small_disk"), pytest.mark.timeout(300)]


@dataclass(frozen=True)
class SmallFarm:
    disk: SmallDisk
    instance: Instance
    client: httpx.Client

    def command(self, *arguments: str) -> str:
        return run(self.disk, *arguments)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.command("status", "--format=json")))

    def submit(self) -> httpx.Response:
        return self.client.post("/v1/jobs", json={"prompt": "红色的圆形", "model": "mini-zh", "count": COUNT})

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        return dict(answer.json()) if answer.status_code == 200 else {}

    def overview(self) -> str:
        return self.client.get("/dashboard/", headers={"Accept-Language": "zh"}).text

    def end_postgres_for_want_of_room(self) -> None:
        """Its write-ahead log needs another segment."""
        url = self.instance.database_url(self.instance.host)
        with suppress(psycopg.Error), psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            for _ in range(20):
                connection.execute("SELECT pg_logical_emit_message(false, 'a test', 'x'), pg_switch_wal()")
        assert not answers(url)


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error:
        return False
    return True


def run(disk: SmallDisk, *arguments: str) -> str:
    home = str(disk.folder)
    variables = {"HUAFANG_HOME": f"{home}/farm", "HOME": home, "PATH": os.environ["PATH"], "HUAFANG_MODELS": "mini-zh"}
    command = disk.enter(*HUAFANG, *arguments)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.2)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[SmallFarm]:
    with small_disk(tmp_path, DISK_BYTES) as disk:
        run(disk, "up", "--device", "stub")
        home = disk.outside / "farm"
        instance = find_instance(home)
        assert instance
        key = (home / "admin-key").read_text().strip()
        bearer = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=instance.url, headers=bearer, trust_env=False, timeout=60) as client:
            client.follow_redirects = True
            client.post("/dashboard/sign-in", data={"key": key}, headers={"Origin": instance.url})
            yield SmallFarm(disk, instance, client)
        run(disk, "down")


def test_acknowledged_jobs_succeed_once_there_is_room(farm: SmallFarm) -> None:
    """First the disk counts as full: images find no room, jobs do. Then nothing does, and Postgres has ended."""
    assert farm.status()["alerts"] == []
    assert "所在的磁盘已满" not in farm.overview()
    farm.disk.fill(but=40 * 2**20)
    accepted = [farm.submit() for _ in range(JOBS)]
    assert {answer.status_code for answer in accepted} == {201}
    jobs = [answer.json()["id"] for answer in accepted]
    until(lambda: "storage_away" in (farm.disk.outside / "farm/logs/worker-1.log").read_text())
    (alert,) = farm.status()["alerts"]
    folder = f"{farm.disk.folder}/farm/s3"
    assert alert == f"The disk of {folder} is full: the farm waits, and goes on by itself when there is room."
    assert alert in farm.command("status", "--format=human")
    assert f"{folder} 所在的磁盘已满：农场在等待。" in farm.overview()
    upload = farm.client.post("/v1/uploads", content="圆形\n".encode(), headers={"Content-Type": "text/plain"})
    assert (upload.status_code, upload.json()["code"]) == (507, "no_room"), upload.text

    farm.disk.fill()
    farm.end_postgres_for_want_of_room()
    late = [farm.submit() for _ in range(2)]
    assert {answer.status_code for answer in late} <= {201, 503, 507}
    jobs += [answer.json()["id"] for answer in late if answer.status_code == 201]
    shown = farm.status()
    assert {process["name"] for process in shown["processes"] if process["pid"]} == PROGRAMS
    assert shown["alerts"] == [alert]

    farm.disk.make_room()
    until(lambda: all(farm.job(job).get("state") in ("succeeded", "failed") for job in jobs))
    ended = [farm.job(job) for job in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert farm.status()["alerts"] == []
    images = [image for job in ended for image in job["images"]]
    assert len(images) == len(jobs) * COUNT
    for image in images:
        assert farm.client.get(f"/v1/images/{image['id']}/content").status_code == 200
    assert "所在的磁盘已满" not in farm.overview()
