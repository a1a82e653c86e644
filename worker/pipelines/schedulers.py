"""The schedulers by the catalogue's names, with settings that a checkpoint's config may lack. Imports torch.

Two of them are changed: LMSDiscreteScheduler computes its coefficients faster, TCDScheduler keeps its own eta. Knows
the class of a scheduler, not which of them a family of models may use.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput

Config = dict[str, Any]

LMS_ORDER = 4  # at most: `lms_coefficients` is exact up to it


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):
    """diffusers' scheduler, within a rounding error, in 6 torch operations a step for 1,713.

    diffusers integrates numerically, on tensors, in each step. Here the coefficients of all steps are floats, computed
    at the first one: until then `truncate_timesteps` may change the sigmas.
    """

    _sigmas: list[float]
    _coefficients: list[list[float]]
    _earlier: list[torch.Tensor]  # derivatives, the newest first

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        if self.step_index is None:
            self._init_step_index(timestep)
        return sample / (self._sigmas[self.step_index] ** 2 + 1) ** 0.5

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        derivative = self._derivative(model_output, sample, self._sigmas[self.step_index])
        newest, *older = self._coefficients[self.step_index]
        change = newest * derivative
        for coefficient, earlier in zip(older, self._earlier, strict=True):
            change.add_(earlier, alpha=coefficient)
        self._earlier = [derivative, *self._earlier][: LMS_ORDER - 1]
        self._step_index += 1
        return LMSDiscreteSchedulerOutput(sample + change) if return_dict else (sample + change,)

    def _init_step_index(self, timestep: Any) -> None:
        super()._init_step_index(timestep)
        self._earlier = []
        self._sigmas = self.sigmas.tolist()
        self._coefficients = lms_coefficients(self._sigmas)

    def _derivative(self, model_output: torch.Tensor, sample: torch.Tensor, sigma: float) -> torch.Tensor:
        """(sample − the predicted image) / sigma."""
        if self.config.prediction_type == "epsilon":
            return model_output
        if self.config.prediction_type == "v_prediction":
            scale = (sigma**2 + 1) ** 0.5
            return (model_output / scale).add_(sample, alpha=sigma / scale**2)
        return (sample - model_output) / sigma


def lms_coefficients(sigmas: Sequence[float]) -> list[list[float]]:
    """For each step, what the newest derivatives are multiplied by, the newest first.

    The polynomial through the last derivatives (of degree 3 at most) is integrated from a sigma to the next one. Each
    coefficient is the integral of a Lagrange basis polynomial, for which Simpson's rule is exact up to degree 3.
    """
    coefficients = []
    for step, (start, end) in enumerate(pairwise(sigmas)):
        nodes = sigmas[max(0, step + 1 - LMS_ORDER) : step + 1][::-1]
        at_start, at_middle, at_end = (_lagrange_basis(nodes, at) for at in (start, (start + end) / 2, end))
        coefficients.append(
            [(end - start) / 6 * sum(terms) for terms in zip(at_start, [4 * y for y in at_middle], at_end, strict=True)]
        )
    return coefficients


def _lagrange_basis(nodes: Sequence[float], at: float) -> list[float]:
    """The values there of the polynomials that are 1 at one of the nodes and 0 at the others."""
    values = []
    for node in nodes:
        value = 1.0
        for other in nodes:
            value *= 1.0 if other == node else (at - other) / (node - other)
        values.append(value)
    return values


class TCDScheduler(diffusers.TCDScheduler):
    """Steps with diffusers' default eta of 0.3. Its pipelines would pass the eta of DDIM, which is 0."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        return super().step(model_output, timestep, sample, generator=generator, return_dict=return_dict)


# steps_offset, skip_prk_steps: what Stable Diffusion was trained with; checkpoints of 2022 leave them out.
# clip_sample: latents are not pixels; clipping them ruins the image.
# lower_order_final: without it, dpm++_singlestep cannot end at a sigma of 0.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_singlestep": (
        diffusers.DPMSolverSinglestepScheduler,
        {"algorithm_type": "dpmsolver++", "lower_order_final": True},
    ),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "kdpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {"clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "tcd": (TCDScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "flow_euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
}


def scheduler(name: str, config: Config) -> Any:
    """A new scheduler. Each call needs its own: schedulers keep state."""
    scheduler_class, settings = SCHEDULERS[name]
    return scheduler_class.from_config({"set_alpha_to_one": False, **config}, **settings)


def class_names(names: Sequence[str]) -> dict[str, str]:
    """The catalogue's names of these schedulers by their classes in diffusers; the first one of a class counts."""
    return {SCHEDULERS[name][0].__name__: name for name in reversed(names)}
