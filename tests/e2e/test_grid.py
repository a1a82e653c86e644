"""`huafang grid` to its page and its sheet: a real API, a control worker and a render worker."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from common.config import SHIPPED_CATALOG, Settings
from tests.support.command_line import HUAFANG, CommandLine
from tests.support.serving import Api, serving
from tests.support.workers import QUICK, running
from tests.unit.cli.test_grid import Page

SIZE = "--size=64x64"
HOSTILE = "<script>alert('圆')</script> & \""


@pytest.fixture
def api(settings: Settings, database: Engine) -> Iterator[Api]:
    with serving(settings, database) as api:
        yield api


@pytest.fixture
def environment(api: Api, tmp_path: Path) -> dict[str, str]:
    """The variables of the command line for this farm."""
    with api.client() as client:
        key = client.headers["Authorization"].removeprefix("Bearer ")
    return {"HUAFANG_URL": api.url, "HUAFANG_KEY": key, "HUAFANG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}


def test_a_grid_has_the_same_prompts_and_seeds_per_column(
    api: Api,
    environment: dict[str, str],
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    call, out, again = CommandLine(capsys), tmp_path / "grid", tmp_path / "again"
    file = tmp_path / "prompts.txt"
    file.write_text(f"红色的圆形\n\n{HOSTILE}\n圆 #flagged\n圆 #nan\n")
    given = (f"--prompts={file}", "--steps=2,3", "--guidance=2", "--seed=7", SIZE, f"--out={out}", "--format=json")
    with running(tmp_path, settings, "control", **QUICK), running(tmp_path, settings, "render", **QUICK):
        made = call("grid", *given)
        assert (made.code, "4 of 8 pictures are missing" in made.err) == (6, True), made.err
        resumed = call("grid", "--batch", made.json["batch"], f"--out={again}", "--format=json")
        assert resumed.code == 6

    page = Page((out / "grid.html").read_bytes())
    assert [each["alt"] for each in page.all("img")] == [
        f"{prompt}, {steps} steps, seed {seed}"
        for seed, prompt in ((7, "红色的圆形"), (8, HOSTILE))
        for steps in (2, 3)
    ]
    assert page.text.count("flagged: the safety checker refused it") == 2
    assert sum("asked the stub for NaN" in text for text in page.text) == 2
    assert len(list((out / "pictures").iterdir())) == 4
    with Image.open(out / "grid.png") as sheet:
        assert sheet.width > 400
        assert sheet.height > 4 * 128
        assert (
            len(sheet.convert("RGB").getcolors(2**24)) > 1000
        )  # the pictures of the stub have many colours, the sheet itself few
    for name in ("grid.html", "grid.png"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_an_interrupted_grid_prints_how_to_resume(environment: dict[str, str], tmp_path: Path) -> None:
    """Without a worker it never ends."""
    given = ("--prompt", "红色的圆形", "--schedulers=lms,pndm", SIZE, "--out", "my grid")
    grid = subprocess.Popen(
        [*HUAFANG, "grid", *given], env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    batch_id = grid.stderr.readline().split()[0]
    assert "checking" in grid.stderr.readline()
    grid.send_signal(signal.SIGINT)
    printed = grid.stderr.read()
    assert grid.wait(120) == 130
    assert f"grid --out 'my grid' --batch {batch_id}" in printed


COMPARE = Path(__file__).resolve().parents[2] / "examples" / "compare.sh"
ANOTHER = """
[models.mini-zh-again]
source = "./mini-zh"
family = "stable-diffusion-zh"
description = "The same toy, drawn in more steps."
licence = "Apache-2.0"
width = 128
height = 128
steps = 6
scheduler = "ddim"
guidance = 2.0
token_limit = 48
precision = "fp32"
microbatch = 8
"""


@pytest.mark.timeout(600)
def test_the_example_compares_prompts_plain_and_in_styles_with_models(
    settings: Settings, database: Engine, tmp_path: Path
) -> None:
    """As a model card does: rendered by mini-zh, on this machine's CPU."""
    catalog = tmp_path / "catalog.toml"
    shipped = SHIPPED_CATALOG.read_text("utf-8").replace(
        'steps = 20\nscheduler = "ddim"', 'steps = 4\nscheduler = "ddim"'
    )
    catalog.write_text(shipped.partition("[models.mini-zh.sha256]")[0] + ANOTHER, "utf-8")
    (tmp_path / "mini-zh").symlink_to(SHIPPED_CATALOG.parent / "mini-zh")
    real = settings.model_copy(update={"catalog": catalog, "device": "cpu"})
    with (
        serving(real, database) as api,
        api.client() as client,
        running(tmp_path, real, "control"),
        running(tmp_path, real, "render", MODELS="mini-zh,mini-zh-again"),
    ):
        key = client.headers["Authorization"].removeprefix("Bearer ")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [COMPARE, "mini-zh,mini-zh-again"],
            env={"HUAFANG_URL": api.url, "HUAFANG_KEY": key, "HUAFANG_HOME": str(tmp_path), "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "comparison" / "grid.html").read_bytes())
    assert [each["alt"] for each in page.all("img")] == [
        f"{prompt}, {model}, {style}, seed {seed}"
        for seed, prompt in enumerate(("红色的圆形", "蓝色的月亮", "绿色的树"), 42)
        for model in ("mini-zh", "mini-zh-again")
        for style in ("plain", "blackboard")
    ]
    pictures = sorted((tmp_path / "comparison" / "pictures").iterdir())
    darkness = []
    for file in pictures:
        with Image.open(file) as picture:
            darkness.append(sum(picture.convert("L").resize((8, 8)).tobytes()) / 64)
    plain, styled = sum(darkness[0::2]), sum(darkness[1::2])  # files sort as their jobs were made
    assert len(pictures) == 12
    assert styled < plain - 6 * 20, darkness
    with Image.open(tmp_path / "comparison" / "grid.png") as sheet:
        assert sheet.width > 400
