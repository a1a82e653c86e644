"""Truncated schedules: with any scheduler, a perfect denoiser arrives at the image that it knows."""

import json
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from common.catalog.catalog import SCHEDULERS
from worker.pipelines.img2img import truncate_timesteps
from worker.pipelines.schedulers import scheduler as make_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 20
WITH_NOISE = ("ddpm", "dpm++_sde", "euler_a", "kdpm2_a", "lcm", "tcd")
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
    of_two_halves = dict.fromkeys(("heun", "kdpm2", "kdpm2_a"), 2 * taken - 1)
    assert len(scheduler.timesteps) == {**of_two_halves, "pndm": taken + (taken > 1)}.get(name, taken)
    latents = scheduler.add_noise(image, noise, scheduler.timesteps[:1])
    for time in scheduler.timesteps:
        output = perfect_denoiser(image, scheduler.scale_model_input(latents, time), time, scheduler)
        extra = {"generator": generator} if name in WITH_NOISE else {}
        latents = scheduler.step(output, time, latents, **extra).prev_sample
    assert (latents - image).abs().max() < 0.15
    assert (latents - image).abs().mean() < 0.05


@pytest.mark.parametrize("taken", [2, 8])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a", "tcd"])
def test_the_steps_taken_are_the_last_of_the_whole_schedule(name: str, taken: int) -> None:
    """From the latents that the whole one has there it arrives where that does: its noise is that of its own steps."""
    generator = torch.Generator().manual_seed(1)
    whole, short = make_scheduler(name, ORDINARY), make_scheduler(name, ORDINARY)
    whole.set_timesteps(STEPS, device="cpu")
    truncate_timesteps(short, STEPS, taken, partial(short.set_timesteps, STEPS, device="cpu"))
    left_out = whole.timesteps[: len(whole.timesteps) - len(short.timesteps)]
    start = denoise(whole, left_out, torch.randn(1, 4, 8, 8, generator=generator), generator)
    state = generator.get_state()
    expected = denoise(whole, whole.timesteps[len(left_out) :], start, generator)
    assert torch.allclose(denoise(short, short.timesteps, start, generator.set_state(state)), expected, atol=1e-4)


def denoise(scheduler: Any, times: torch.Tensor, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By these steps, with a model whose output depends on the latents."""
    for time in times:
        extra = {"generator": generator} if scheduler_takes(scheduler, "generator") else {}
        output = scheduler.scale_model_input(latents, time).tanh()
        latents = scheduler.step(output, time, latents, **extra).prev_sample
    return latents


def scheduler_takes(scheduler: Any, name: str) -> bool:
    return name in signature(scheduler.step).parameters


@pytest.mark.parametrize("taken", [1, 2, 8, 20])
def test_a_perfect_denoiser_of_a_flow_arrives_at_its_image(taken: int) -> None:
    image, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = make_scheduler("flow_euler", {"shift": 3.0})
    truncate_timesteps(scheduler, STEPS, taken, partial(scheduler.set_timesteps, STEPS, device="cpu"))
    assert len(scheduler.timesteps) == taken
    latents = scheduler.scale_noise(image, scheduler.timesteps[:1], noise)
    for time in scheduler.timesteps:
        flow = (latents - image) / (time / 1000)
        latents = scheduler.step(flow, time, latents).prev_sample
    assert (latents - image).abs().max() < 1e-3
