"""The training loop of every stage: cosine schedule, averaged weights, and atomic checkpoints.

A batch depends on its step only. So training that resumes from a checkpoint (weights, their average, the optimiser, the
step) gives exactly what it would have given without the interruption.
"""

import copy
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

Losses = dict[str, torch.Tensor]
LOG_EVERY = 100


class Stage(Protocol):
    """The networks and their losses for a step: `total` is minimised, the others are only logged."""

    name: str
    networks: nn.Module
    steps: int
    rate: float

    def losses(self, step: int) -> Losses: ...


def train(stage: Stage, folder: Path, save_every_s: float = 60.0) -> nn.Module:
    """The averaged networks after all of the stage's steps. Reads them if the stage is finished."""
    file = folder / f"{stage.name}.state"
    average = copy.deepcopy(stage.networks).requires_grad_(False)
    weights = [weight for weight in stage.networks.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=stage.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    step = _resume(file, stage.networks, average, optimiser)
    log = _Log(folder / f"{stage.name}.log", stage)
    saved = time.monotonic()
    while step < stage.steps:
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * _schedule(step, stage.steps)
        losses = stage.losses(step)
        optimiser.zero_grad()
        losses["total"].backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        _average(average, stage.networks, step)
        log.add(step, losses)
        if time.monotonic() - saved > save_every_s or step == stage.steps:
            _save(file, step, stage.networks, average, optimiser)
            saved = time.monotonic()
    return average.eval()


def read_average(stage: Stage, folder: Path) -> Any:
    """The averaged networks as they were last saved."""
    state = torch.load(folder / f"{stage.name}.state", weights_only=True)
    stage.networks.load_state_dict(state["average"])
    return stage.networks.eval().requires_grad_(False)


def generator(step: int, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(step * 1009 + salt)


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _average(average: nn.Module, networks: nn.Module, step: int) -> None:
    keep = min(0.998, 1 - 1 / (step + 1) ** 0.75)
    with torch.no_grad():
        torch._foreach_lerp_([*average.parameters()], [*networks.parameters()], 1 - keep)


def _save(file: Path, step: int, networks: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write a temporary file and rename it, so that a killed process leaves a complete checkpoint."""
    beside = file.with_suffix(".new")
    state = {
        "step": step,
        "networks": networks.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with beside.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


def _resume(file: Path, networks: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    networks.load_state_dict(state["networks"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


class _Log:
    """Prints and writes a line every 100 steps: the means of the losses, and CPU seconds."""

    def __init__(self, file: Path, stage: Stage) -> None:
        self._file, self._stage = file, stage
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0

    def add(self, step: int, losses: Losses) -> None:
        for name, loss in losses.items():
            self._sums[name] += loss.item()
        self._steps += 1
        if step % LOG_EVERY and step != self._stage.steps:
            return
        means = "  ".join(f"{name} {total / self._steps:.4f}" for name, total in self._sums.items())
        line = f"{self._stage.name} {step}/{self._stage.steps}  {means}  cpu {time.process_time():.0f} s"
        print(line, flush=True)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._sums.clear()
        self._steps = 0


def parameters(networks: Any) -> int:
    return sum(weight.numel() for weight in networks.parameters())
