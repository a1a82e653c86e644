"""A shorter schedule leads to the picture, whatever the scheduler: a denoiser that knows it comes to just that one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.catalog.catalog import SCHEDULERS
from worker.pipelines.img2img import truncate_timesteps
from worker.pipelines.loader import scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 20
ORDINARY = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MINI = json.loads((Path(__file__).parents[2] / "models/mini-zh/scheduler/scheduler_config.json").read_text("utf-8"))


def knowing(picture: torch.Tensor, latents: torch.Tensor, time: Any, of: Any) -> torch.Tensor:
    """What a model says that knows the picture under the noise, if there is as much noise as the time says."""
    signal = of.alphas_cumprod[int(time.floor())].sqrt()
    noise = (1 - signal**2).sqrt()
    said = (latents - signal * picture) / noise
    return signal * said - noise * picture if of.config.prediction_type == "v_prediction" else said


@pytest.mark.parametrize(("taken", "config"), [(1, ORDINARY), (2, ORDINARY), (8, ORDINARY), (5, MINI)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_whoever_knows_the_picture_paints_it(name: str, taken: int, config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    picture, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    of = scheduler(name, config)
    truncate_timesteps(of, STEPS, taken, "cpu")
    of.set_timesteps(STEPS, device="cpu")  # as the pipeline does
    assert len(of.timesteps) == {"heun": 2 * taken - 1, "kdpm2": 2 * taken - 1, "pndm": taken + (taken > 1)}.get(
        name, taken
    )
    latents = of.add_noise(picture, noise, of.timesteps[:1])
    for time in of.timesteps:
        said = knowing(picture, of.scale_model_input(latents, time), time, of)
        extra = {"generator": generator} if name in ("ddpm", "euler_a", "dpm++_sde") else {}
        latents = of.step(said, time, latents, **extra).prev_sample
    assert (latents - picture).abs().max() < 0.15
    assert (latents - picture).abs().mean() < 0.05
