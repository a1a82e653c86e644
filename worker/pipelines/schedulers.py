"""The schedulers by the catalogue's names, with settings that a checkpoint's config may lack. Imports torch."""

from typing import Any

import diffusers

Config = dict[str, Any]

# steps_offset, skip_prk_steps: what Stable Diffusion was trained with; checkpoints of 2022 leave them out.
# clip_sample: latents are not pixels; clipping them ruins the image.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "flow_euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
}


def scheduler(name: str, config: Config) -> Any:
    """A new scheduler. Each call needs its own: schedulers keep state."""
    scheduler_class, settings = SCHEDULERS[name]
    return scheduler_class.from_config({"set_alpha_to_one": False, **config}, **settings)


def scheduler_name(class_name: str | None) -> str:
    """The catalogue's name for a scheduler class of diffusers; `ddim` for any other class."""
    return next((name for name, (known, _) in SCHEDULERS.items() if known.__name__ == class_name), "ddim")
