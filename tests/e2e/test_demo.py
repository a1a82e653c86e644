"""The demo in an empty home, twice, with the curl command that it prints."""

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support.command_line import Result, run_process

COLOURS = {
    "red": (225, 35, 35),
    "yellow": (250, 210, 50),
    "blue": (35, 95, 215),
    "green": (45, 165, 80),
    "orange": (248, 142, 32),
    "sky": (150, 208, 246),
    "night": (24, 28, 78),
    "purple": (130, 60, 180),
    "white": (253, 253, 253),
}
# What each prompt asks for: the colour at a place, in fractions of width and height.
EXPECTED = {
    "红色的圆形": {(0.5, 0.5): "red", (0.06, 0.06): "white"},
    "一个蓝色的正方形，黄色背景": {(0.5, 0.5): "blue", (0.06, 0.06): "yellow", (0.94, 0.94): "yellow"},
    "左边一个黄色的星形，右边一个紫色的心形": {(0.26, 0.5): "yellow", (0.74, 0.5): "purple"},
    "草地上有一座红色的房子，天上有太阳": {
        (0.1, 0.1): "sky",
        (0.1, 0.95): "green",
        (0.4, 0.68): "red",
        (0.85, 0.15): "orange",
    },
    "夜空中的月亮": {(0.3, 0.4): "yellow", (0.5, 0.8): "night"},
    "一只橙色的猫，背景是蓝色的": {(0.5, 0.42): "orange", (0.06, 0.06): "blue"},
}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An empty HOME and few variables."""
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    yield environment
    run_process("down", environment=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("somewhere")


@pytest.fixture(scope="module")
def first(environment: dict[str, str], folder: Path) -> dict[str, Any]:
    done = run_process("demo", "--format=json", environment=environment, cwd=folder, timeout=500)
    assert done.code == 0, done.err
    return dict(done.json)


@pytest.fixture(scope="module")
def second(first: dict[str, Any], environment: dict[str, str], folder: Path) -> Result:
    """The demo again, in an environment that names another farm."""
    other = {"HUAFANG_URL": "http://127.0.0.1:1", "HUAFANG_KEY": "huaf_of_another_farm"}
    return run_process("demo", environment=environment | other, cwd=folder, timeout=500)


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float)


def sums(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.endswith(".png"))


def colour_at(pixels: np.ndarray, x: float, y: float) -> str:
    """The nearest colour to the mean of a patch of 7 × 7."""
    row, column = int(y * pixels.shape[0]), int(x * pixels.shape[1])
    patch = pixels[row - 3 : row + 4, column - 3 : column + 4].reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: float(np.abs(patch - COLOURS[name]).sum()))


def get(url: str, path: str, key: str) -> httpx.Response:
    """A request without the command line."""
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as client:
        return client.get(url + path, headers={"Authorization": f"Bearer {key}"}).raise_for_status()


def key_of(environment: dict[str, str]) -> str:
    return (Path(environment["HOME"]) / ".local/share/huafang/admin-key").read_text().strip()


def test_the_pictures_have_the_colours_of_the_prompts(first: dict[str, Any], folder: Path) -> None:
    assert len(first["pictures"]) >= 4
    assert {picture["prompt"] for picture in first["pictures"]} == EXPECTED.keys()
    for picture in first["pictures"]:
        pixels = pixels_of(folder / picture["path"])
        seen = {place: colour_at(pixels, *place) for place in EXPECTED[picture["prompt"]]}
        assert seen == EXPECTED[picture["prompt"]], picture["prompt"]


def test_file_row_and_stored_bytes_are_the_same(
    first: dict[str, Any], folder: Path, environment: dict[str, str]
) -> None:
    for picture in first["pictures"]:
        row = get(first["url"], f"/v1/images/{picture['id']}", key_of(environment)).json()
        stored = get(first["url"], f"/v1/images/{picture['id']}/content", key_of(environment)).content
        in_file = hashlib.sha256((folder / picture["path"]).read_bytes()).hexdigest()
        assert in_file == hashlib.sha256(stored).hexdigest() == row["sha256"] == picture["sha256"]


def test_a_second_demo_uses_the_farm_and_renders_the_same(
    first: dict[str, Any], second: Result, folder: Path, environment: dict[str, str]
) -> None:
    """Equal within one level per channel: the images of a microbatch differ."""
    assert second.code == 0, second.err
    files = [folder / line.split("  ")[1] for line in second.out.splitlines() if line.endswith(".png")]
    assert len(files) == len(first["pictures"])
    for picture, file in zip(first["pictures"], files, strict=True):
        assert file != folder / picture["path"]
        assert np.abs(pixels_of(file) - pixels_of(folder / picture["path"])).max() <= 1
    listed = subprocess.run(
        ["sha256sum", "-c"], input=sums(second.out), cwd=folder, text=True, capture_output=True, check=False
    )
    assert listed.stdout.count(": OK") == len(files)
    assert run_process("status", "--format=quiet", environment=environment).out.strip() == first["url"]


def test_it_prints_the_next_steps(second: Result) -> None:
    for prompt in EXPECTED:
        assert prompt in second.out
    for text in ("toy", "zh-v0", "HF_TOKEN", "down", " s "):
        assert text in second.out
    assert "Traceback" not in second.err


@pytest.mark.needs("curl")
def test_the_printed_curl_works(second: Result, environment: dict[str, str], folder: Path) -> None:
    pasted = "curl" + second.out.rpartition("\ncurl")[2]
    done = subprocess.run(
        ["sh", "-c", pasted], env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["images"][0]["state"]) == ("succeeded", "stored")


def test_secrets_are_private(first: dict[str, Any], environment: dict[str, str]) -> None:
    home = Path(environment["HOME"]) / ".local/share/huafang"
    for name in ("admin-key", "farm.json"):
        assert (home / name).stat().st_mode & 0o777 == 0o600
    assert key_of(environment) not in json.dumps(first)


def test_down_leaves_no_process_and_no_port(second: Result, environment: dict[str, str]) -> None:
    """The last test of this file: it stops the farm."""
    farm = run_process("status", "--format=json", environment=environment).json
    processes = [psutil.Process(process["pid"]) for process in farm["processes"]]
    processes += [child for process in processes for child in process.children(recursive=True)]
    processes += [parent for process in processes[:1] for parent in process.parents()[:1]]
    ports = json.loads((Path(environment["HOME"]) / ".local/share/huafang/farm.json").read_text())["ports"]
    assert all(is_open(port) for port in ports.values())

    assert run_process("down", environment=environment).code == 0

    assert [process for process in processes if lives(process)] == []
    assert [name for name, port in ports.items() if is_open(port)] == []
    assert run_process("status", environment=environment).code == 4
    assert run_process("down", environment=environment).code == 0


def lives(process: psutil.Process) -> bool:
    """Not a zombie."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
