"""Each writer of the local farm on a disk that is full: what it does then, and once there is room.

The whole farm is in `tests/e2e/test_full_disk.py`.
"""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from supervisor import loggers
from supervisor.states import ProcessStates

from common.config import Settings
from common.disks import RESERVE_BYTES, full_disks
from common.errors import NoRoom
from common.storage import Storage
from embedded.processes import Program
from embedded.supervisor import program_section
from embedded.tolerant_supervisord import LONGEST_PAUSE_S, LossyLog, PatientProcess
from tests.support.serving import serving
from tests.support.small_disk import SmallDisk, program_on, small_disk, store_on
from tests.support.stories import Story

MB = 2**20

pytestmark = pytest.mark.needs("small_disk")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Its free bytes beyond the reserve: 30 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with small_disk(folder, RESERVE_BYTES + 30 * MB) as disk:
        yield disk


# Logs and processes


def a_log(path: Path, most: int = 10_000) -> LossyLog:
    log = LossyLog(str(path), "a", most, 2)
    log.setFormat("%(message)s\n")
    return log


def write(log: LossyLog, text: str) -> None:
    log.emit(loggers.LogRecord(loggers.LevelsByName.INFO, text))


def test_lines_that_find_no_room_are_lost_and_counted(disk: SmallDisk) -> None:
    path = disk.outside / "a.log"
    log = a_log(path)
    write(log, "before")
    disk.fill()
    for number in range(1_000):
        write(log, f"{number:09}")
    assert path.stat().st_size < 10_000
    disk.make_room()
    write(log, "after")
    kept = path.read_text()
    assert kept.startswith("before\n")
    found_room = kept.removeprefix("before\n").partition("\n… ")[0]
    assert kept.endswith(f"\n… {10_000 - len(found_room)} bytes of this log found no room …\nafter\n")


def test_a_log_rotates_and_begins_later_where_it_cannot_yet(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.log"
    log = a_log(path, most=100)
    write(log, "lost")
    path.parent.mkdir()
    for number in range(40):
        write(log, f"{number:09}")
    assert {name.name: name.stat().st_size for name in path.parent.iterdir()} == {
        "a.log": 0,
        "a.log.1": 100,
        "a.log.2": 100,
    }


def test_a_program_is_started_again_for_ever() -> None:
    retries = int(program_section(Program("any", ()), autostart=True).partition("startretries=")[2].splitlines()[0])
    process: Any = PatientProcess(config=None)
    for _ in range(10 * retries):
        process.change_state(ProcessStates.BACKOFF)
        assert process.backoff <= min(retries, LONGEST_PAUSE_S)
        assert process.delay <= time.time() + LONGEST_PAUSE_S
        process.change_state(ProcessStates.STARTING)


def test_a_program_starts_once_the_disk_of_its_data_has_room(disk: SmallDisk) -> None:
    (disk.outside / "run").mkdir()
    lock = disk.outside / "run" / "one.lock"
    lock.write_text("4194304   ")  # of the process that ran there before
    program = Program("one", ("echo", "started"), data=str(disk.folder))
    with program_on(disk, program, is_full=True) as child:
        assert child.stdout
        assert child.stdout.readline() == f"The disk of {disk.folder} is full: waiting for room.\n"
        assert int(lock.read_text()) == child.pid
        disk.make_room()
        assert child.stdout.read() == "started\n"


def test_full_disks_are_named_once_and_only_those_of_a_farm(disk: SmallDisk, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert full_disks(home) == []
    (home / "postgres").mkdir(parents=True)
    (disk.outside / "logs").mkdir()
    (home / "logs").symlink_to(disk.outside / "logs")
    disk.fill()
    assert [(each.folder, each.has_data) for each in full_disks(home)] == [(home / "logs", False)]
    (disk.outside / "s3").mkdir()
    (home / "s3").symlink_to(disk.outside / "s3")
    assert [(each.folder, each.has_data) for each in full_disks(home)] == [(home / "s3", True)]


# The image store, and what is put into it


@pytest.fixture
def of_store(disk: SmallDisk) -> Iterator[Settings]:
    with store_on(disk) as settings:
        yield settings


def test_a_full_store_refuses_deletes_and_leaves_no_part(disk: SmallDisk, of_store: Settings) -> None:
    storage, client = Storage(of_store), client_of(of_store)
    storage.put("kept", b"x" * MB, "image/png")
    free = disk.free
    with pytest.raises(NoRoom, match="image store is full"):
        storage.put_file("large", io.BytesIO(bytes(60 * MB)), "image/png")
    assert keys(client) == ["kept"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket="small")
    assert disk.free > free - MB  # the parts are gone

    disk.fill(but=RESERVE_BYTES // 4)
    with pytest.raises(NoRoom):
        storage.put("one more", b"x", "image/png")
    assert storage.get("kept") == b"x" * MB
    storage.delete(["kept"])
    assert keys(client) == []

    disk.fill()
    with pytest.raises(NoRoom):
        storage.put("one more", b"x", "image/png")
    disk.make_room()
    storage.put("one more", b"x", "image/png")
    assert keys(client) == ["one more"]


def client_of(settings: Settings) -> Any:
    return Storage(settings)._client


def keys(client: Any) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket="small").get("Contents", [])]


def test_an_upload_that_finds_no_room_in_the_store_leaves_nothing(
    disk: SmallDisk, of_store: Settings, settings: Settings, database: Engine, story: Story
) -> None:
    own = {name: getattr(of_store, name) for name in of_store.model_fields_set}
    with serving(settings.model_copy(update=own), database) as api, api.client() as client:
        disk.fill(but=RESERVE_BYTES)
        refused = [send(client, size) for size in (1000, 20 * MB)]
        inline = client.post("/v1/batches", json={"prompts": ["圆形"]})
        for answer in (*refused, inline):
            assert (answer.status_code, answer.json()["code"]) == (507, "no_room"), answer.text
            assert answer.json()["detail"].count(".") == 1
            assert int(answer.headers["Retry-After"]) > 0
        assert (story.count("uploads"), story.count("batches"), keys(client_of(of_store))) == (0, 0, [])
        disk.make_room()
        assert send(client, 1000).status_code == 201


def send(client: httpx.Client, size: int) -> httpx.Response:
    return client.post("/v1/uploads", content=b"x" * size, headers={"Content-Type": "text/plain"})
