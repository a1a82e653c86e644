"""The command line on a disk without room: one sentence, and no part of a file."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client import Client
from cli.download import RemoteFile, download, download_file, write_file
from cli.errors import Failure
from tests.support.command_line import HUAFANG, CommandLine, Request, Response, fake_farm
from tests.support.small_disk import FILLER, SmallDisk, small_disk

PICTURE = os.urandom(100_000)
SHA256 = hashlib.sha256(PICTURE).hexdigest()

pytestmark = pytest.mark.needs("small_disk")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """With room for half a picture."""
    with small_disk(tmp_path, 200_000) as disk:
        disk.fill(but=50_000)
        yield disk


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def render(request: Request) -> Response:
    if request.path.endswith("/content"):
        return Response(body=PICTURE)
    image = {"id": "an-image", "index": 0, "state": "stored", "format": "png", "seed": 1, "sha256": SHA256}
    recipe = {"prompt": "红色的圆形", "model": "mini-zh", "steps": 20}
    job = {"id": "a-job", "state": "succeeded", "recipe": recipe, "images": [image], "progress": None, "warnings": []}
    return Response(201 if request.method == "POST" else 200, job)


def test_a_picture_is_saved_whole_or_not_at_all(call: CommandLine, disk: SmallDisk) -> None:
    with fake_farm(render) as farm:
        arguments = ("--url", farm.url, "generate", "红色的圆形", "--out", str(disk.outside))
        done = call(*arguments)
        assert (done.code, done.err.splitlines()[-1].count("No space left on device")) == (1, 1), done.err
        assert "Traceback" not in done.err
        assert os.listdir(disk.outside) == [FILLER]
        disk.make_room()
        assert call(*arguments).code == 0
        assert (disk.outside / "a-job-0.png").read_bytes() == PICTURE


def test_what_was_there_stays(disk: SmallDisk) -> None:
    path = disk.outside / "page.html"
    path.write_text("before")
    with pytest.raises(Failure, match="No space left"):
        write_file(path, PICTURE)
    assert path.read_text() == "before"


def test_a_dataset_is_refused_before_its_first_byte(disk: SmallDisk) -> None:
    def listed(request: Request) -> Response:
        raise AssertionError("asked for the files")

    with fake_farm(listed) as farm, pytest.raises(Failure, match=r"has room for [34]\d.* kB, and 70 kB are to be"):
        out = disk.outside / "out"
        out.mkdir()
        (out / "there").write_bytes(bytes(10_000))
        download(Client(farm.url, "key"), {"id": "it", "bytes": 80_000}, out, lambda gained: None)


def test_no_part_of_a_file_is_left(disk: SmallDisk) -> None:
    with fake_farm(lambda request: Response(body=PICTURE)) as farm:
        file = RemoteFile("a-dataset", "0", "train/00.tar", SHA256, f"{farm.url}/00.tar")
        with pytest.raises(Failure, match="No space left on device"):
            download_file(Client(farm.url, "key"), file, disk.outside, lambda gained: None)
    assert [path.name for path in disk.outside.rglob("*") if path.is_file()] == [FILLER]


def test_output_without_room_is_one_sentence() -> None:
    with open("/dev/full", "wb") as full:
        command = [*HUAFANG, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("huafang: A disk is full: that of the output, ")


def test_a_pipe_of_prompts_without_room_for_its_copy_is_one_sentence(disk: SmallDisk) -> None:
    command = [*HUAFANG, "--url", "http://127.0.0.1:1", "--key", "a-key", "batch", "submit", "-"]
    done = subprocess.run(
        command,
        input=PICTURE,
        env={**os.environ, "TMPDIR": str(disk.outside)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"temporary files ({disk.outside})" in done.stderr.decode()
    assert os.listdir(disk.outside) == [FILLER]


def test_a_bug_without_room_for_its_log_is_one_sentence(
    call: CommandLine, boom: str, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.outside))
    disk.fill()
    done = call(boom)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "a bug in huafang (ZeroDivisionError)" in done.err
    assert os.listdir(disk.outside) == [FILLER]
