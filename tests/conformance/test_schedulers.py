"""Schedulers: the settings of ours, and the fast LMS."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate
from torch.utils._python_dispatch import TorchDispatchMode

from worker.pipelines.schedulers import LMSDiscreteScheduler, lms_coefficients, scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

OF_2022 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_ddpm_takes_the_timesteps_that_stable_diffusion_was_trained_with(steps: int) -> None:
    """Its config of 2022 lacks the offset: without it the last timestep would be 0, and not 1."""
    ours, ddim = scheduler("ddpm", OF_2022), scheduler("ddim", OF_2022)
    trained = diffusers.DDPMScheduler(**OF_2022, steps_offset=1)
    for each in (ours, ddim, trained):
        each.set_timesteps(steps)
    assert ours.timesteps.tolist() == trained.timesteps.tolist() == ddim.timesteps.tolist()
    assert ours.timesteps[-1] == 1


# LMS


class Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def denoised(scheduler: Any, steps: int) -> torch.Tensor:
    """By a model whose output depends on its input and on the timestep."""
    scheduler.set_timesteps(steps, device="cpu")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = (scheduler.scale_model_input(latents, time) * (1 + time / 500)).sin()
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def test_lms_coefficients_are_the_integrals_of_the_lagrange_basis() -> None:
    lms = scheduler("lms", OF_2022)
    lms.set_timesteps(20)
    sigmas = lms.sigmas.tolist()
    for step, coefficients in enumerate(lms_coefficients(sigmas)):
        nodes = [sigmas[step - back] for back in range(min(step + 1, 4))]
        assert len(coefficients) == len(nodes)
        for node, coefficient in zip(nodes, coefficients, strict=True):

            def basis(at: float, node: float = node, nodes: list[float] = nodes) -> float:
                return float(np.prod([(at - other) / (node - other) for other in nodes if other != node]))

            exact = integrate.quad(basis, sigmas[step], sigmas[step + 1])[0]
            assert coefficient == pytest.approx(exact, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_lms_gives_what_the_lms_of_diffusers_gives(prediction: str, steps: int) -> None:
    config = {**OF_2022, "prediction_type": prediction}
    ours = denoised(scheduler("lms", config), steps)
    theirs = denoised(diffusers.LMSDiscreteScheduler.from_config(config), steps)
    assert (ours - theirs).abs().max() < 1e-4


def test_an_lms_step_takes_few_operations() -> None:
    """diffusers takes 1,713, most of them to integrate; an Euler step takes 19."""
    lms = scheduler("lms", OF_2022)
    lms.set_timesteps(20)
    latents, output = torch.zeros(2, 1, 4, 8, 8)
    with Operations() as operations:
        for time in lms.timesteps:
            latents = lms.step(output, time, lms.scale_model_input(latents, time), return_dict=False)[0]
    assert operations.count / 20 < 7


def test_lms_keeps_the_precision_of_the_latents() -> None:
    lms = scheduler("lms", {**OF_2022, "prediction_type": "v_prediction"})
    lms.set_timesteps(4)
    assert isinstance(lms, LMSDiscreteScheduler)
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    for time in lms.timesteps:
        latents = lms.step(lms.scale_model_input(latents, time), time, latents).prev_sample
    assert latents.dtype == torch.float16
