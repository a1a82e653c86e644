"""Training goes on exactly where it was, whenever the process was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from training.loop import Losses, generator, train

HOME = Path(__file__).parents[3]
STEPS = 120


class Tiny:
    """A stage so small that a save takes longer than a step: a kill hits the middle of a save as often as not."""

    name, steps, rate = "tiny", STEPS, 1e-2

    def __init__(self, pause_s: float = 0.0) -> None:
        torch.manual_seed(1)
        self.networks = torch.nn.Linear(64, 64)
        self._pause_s = pause_s

    def losses(self, step: int) -> Losses:
        time.sleep(self._pause_s)
        seen = torch.randn(8, 64, generator=generator(step))
        return {"total": (self.networks(seen) - seen.flip(1)).square().mean()}


def slowly(folder: Path) -> subprocess.Popen[bytes]:
    """In a process of its own, which can be killed."""
    line = "import sys, pathlib; from tests.unit.training.test_training import Tiny, train; "
    line += "train(Tiny(0.02), pathlib.Path(sys.argv[1]), 0)"
    environment = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", line, str(folder)], env=environment, stdout=subprocess.DEVNULL)


def steps_in(folder: Path) -> int:
    file = folder / "tiny.state"
    return int(torch.load(file, weights_only=True)["step"]) if file.exists() else 0


def test_a_kill_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    wanted = train(Tiny(), undisturbed, save_every_s=0).state_dict()
    process = slowly(killed)
    while steps_in(killed) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert 40 <= steps_in(killed) < STEPS
    found = train(Tiny(), killed, save_every_s=0).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_finished_stage_is_only_read(tmp_path: Path) -> None:
    first = train(Tiny(), tmp_path, save_every_s=0).state_dict()
    before = (tmp_path / "tiny.state").read_bytes()
    again = train(Tiny(), tmp_path, save_every_s=0).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "tiny.state").read_bytes() == before
