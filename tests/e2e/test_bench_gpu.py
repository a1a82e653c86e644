"""The run that waits for a machine with a GPU: it works with tiny models here, and ends in time whatever happens."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import models
from common.catalog.families import families

HOME = Path(__file__).resolve().parents[2]
SIZES = {  # parameters of the published models
    models.sd_unet: 859_520_964,
    models.sdxl_unet: 2_567_463_684,
    models.clip: 123_060_480,
    models.clip_big: 694_659_840,
    models.vae: 83_653_863,
    models.qwen3_4b: 4_022_468_096,
    models.z_image_transformer: 6_154_908_736,
}


def bench(out: Path, *arguments: str) -> dict[str, Any]:
    """The cases of a run by their names."""
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr + out.read_text()
    result = json.loads(out.read_text())
    assert result["commit"]
    assert result["versions"]["torch"]
    return {case["name"]: case for case in result["cases"]}


def test_a_case_runs_with_tiny_models(tmp_path: Path) -> None:
    (case,) = bench(tmp_path / "gpu.json", "--only", next(iter(models.FAMILIES))).values()
    assert case["ended"] == "done"
    assert min(case["figures"]["compiled_images_per_s"].values()) > 0


@pytest.mark.long
def test_every_case_runs_with_tiny_models(tmp_path: Path) -> None:
    cases = bench(tmp_path / "gpu.json")
    assert [case["ended"] for case in cases.values()] == ["done"] * 4
    for name, family in models.FAMILIES.items():
        figures = cases[name]["figures"]
        if family not in families():
            assert "no family" in figures["skipped"]
            continue
        assert set(figures["eager_images_per_s"]) == {"1", "2"}
        assert figures["compiled"] == "blocks"
        assert min(figures["compiled_images_per_s"].values()) > 0
        assert len(figures["free_after_interrupt_ms"]) == 2
    mixed = cases["mixed queue"]["figures"]
    assert (mixed["models"], mixed["images"]) == (3, 48)
    assert mixed["images/s"] > 0


def test_no_case_outlasts_the_time_for_all(tmp_path: Path) -> None:
    began = time.monotonic()
    cases = bench(tmp_path / "gpu.json", "--seconds", str(gpu.KILLED_AFTER_S + 0.5))
    assert time.monotonic() - began < 60  # torch alone takes seconds in each
    assert [case["ended"] for case in cases.values()] == ["time"] * 4
    assert cases["mixed queue"]["seconds"] == 0


def test_what_a_case_had_measured_when_it_was_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('{\"first\": 1}', flush=True)\nsignal.pause()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "KILLED_AFTER_S", 0.5)
    found: dict[str, Any] = {"figures": {}}
    for _ in gpu.run(gpu.Case("hangs", 3, "hangs"), True, 3, found):
        pass
    assert (found["ended"], found["figures"]) == ("time", {"first": 1})


def test_a_case_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit('no device')\n")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"figures": {}}
    for _ in gpu.run(gpu.Case("fails", 30, "fails"), True, 30, found):
        pass
    assert (found["ended"], found["error"]) == ("failed", "no device\n")


def test_all_cases_together_take_at_most_eight_minutes() -> None:
    assert sum(case.seconds for case in gpu.CASES) <= gpu.SECONDS == 480


@pytest.mark.parametrize("make", SIZES, ids=lambda make: make.__name__)
def test_random_models_are_as_large_as_the_published_ones(make: Any) -> None:
    with torch.device("meta"):
        module = make(False)
    assert sum(values.numel() for values in module.parameters()) == SIZES[make]
