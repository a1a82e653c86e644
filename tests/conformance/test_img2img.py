"""Truncated schedules: with any scheduler, a perfect denoiser arrives at the image that it knows."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from common.catalog.catalog import SCHEDULERS
from worker.pipelines.img2img import truncate_timesteps
from worker.pipelines.schedulers import scheduler as make_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 20
ORDINARY = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MINI = json.loads((Path(__file__).parents[2] / "models/mini-zh/scheduler/scheduler_config.json").read_text("utf-8"))


def perfect_denoiser(image: torch.Tensor, latents: torch.Tensor, time: Any, scheduler: Any) -> torch.Tensor:
    """The output of a model that knows the image, if the noise is that of the timestep."""
    signal = scheduler.alphas_cumprod[int(time.floor())].sqrt()
    noise = (1 - signal**2).sqrt()
    output = (latents - signal * image) / noise
    return signal * output - noise * image if scheduler.config.prediction_type == "v_prediction" else output


@pytest.mark.parametrize(("taken", "config"), [(1, ORDINARY), (2, ORDINARY), (8, ORDINARY), (5, MINI)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_denoiser_arrives_at_its_image(name: str, taken: int, config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    scheduler = make_scheduler(name, config)
    truncate_timesteps(scheduler, STEPS, taken, partial(scheduler.set_timesteps, STEPS, device="cpu"))
    scheduler.set_timesteps(STEPS, device="cpu")  # as the pipeline does
    assert len(scheduler.timesteps) == {"heun": 2 * taken - 1, "kdpm2": 2 * taken - 1, "pndm": taken + (taken > 1)}.get(
        name, taken
    )
    latents = scheduler.add_noise(image, noise, scheduler.timesteps[:1])
    for time in scheduler.timesteps:
        output = perfect_denoiser(image, scheduler.scale_model_input(latents, time), time, scheduler)
        extra = {"generator": generator} if name in ("ddpm", "euler_a", "dpm++_sde") else {}
        latents = scheduler.step(output, time, latents, **extra).prev_sample
    assert (latents - image).abs().max() < 0.15
    assert (latents - image).abs().mean() < 0.05
