"""image2image and inpaint: where denoising starts, and which pixels of the source stay.

    image2image    starts from the source plus noise by the strength, and takes only the last steps
    inpaint        the same; after each step, latents outside the mask are the source's again, with that step's noise

At strength 1 both start from pure noise. The img2img pipelines of diffusers are not used: they start LMS as if three
steps lay behind it, and PNDM at a wrong timestep, which leaves noise in the image. Here the schedule is truncated, so
every scheduler starts at its own first step. Imports torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import max_pool2d

from worker.pipelines.base import ImageRequest

PER_STEP = ("sigmas", "sigmas_interpol")  # attributes of a scheduler with one value per timestep


class Img2Img:
    """The inputs of one call. All its requests have sources; all of them have masks, or none."""

    @torch.no_grad()
    def __init__(self, pipe: Any, requests: Sequence[ImageRequest], generators: list[torch.Generator]) -> None:
        recipe, device, dtype = requests[0].recipe, pipe.device, pipe.unet.dtype
        truncate_timesteps(pipe.scheduler, recipe.steps, recipe.steps_taken, device)
        self._sources = _stack([request.source for request in requests], device)
        self._masks = None
        self._latent_mask = None
        if requests[0].mask is not None:
            self._masks = _stack([request.mask for request in requests], device).unsqueeze(-1)
            # A latent may change if any pixel that it decodes to is inside the mask.
            self._latent_mask = max_pool2d(self._masks.permute(0, 3, 1, 2).to(dtype), pipe.vae_scale_factor)
        self._source_latents = _encode(pipe.vae, self._sources, dtype)
        self._noise = randn_tensor(self._source_latents.shape, generator=generators, device=device, dtype=dtype)
        self._scheduler = pipe.scheduler
        self.latents = self._noise
        if recipe.steps_taken < recipe.steps:
            self.latents = self._noisy_source(0) / pipe.scheduler.init_noise_sigma  # the pipeline multiplies by it

    def on_step_end(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """The latents for the next step. The first half of a second-order step is left alone."""
        is_last = step + 1 == len(self._scheduler.timesteps)
        if self._latent_mask is None or ((step + 1) % self._scheduler.order and not is_last):
            return latents
        kept = self._source_latents if is_last else self._noisy_source(step + 1)
        return torch.where(self._latent_mask > 0, latents, kept.to(latents.dtype))

    def composite(self, pixels: torch.Tensor) -> torch.Tensor:
        """The rendered pixels inside the masks, the sources' pixels outside."""
        return pixels if self._masks is None else torch.where(self._masks, pixels, self._sources)

    def _noisy_source(self, step: int) -> torch.Tensor:
        noisy: torch.Tensor = self._scheduler.add_noise(
            self._source_latents, self._noise, self._scheduler.timesteps[step : step + 1]
        )
        return noisy


def truncate_timesteps(scheduler: Any, steps: int, taken: int, device: Any) -> None:
    """Make the next call of a new scheduler take only the last `taken` of `steps` steps."""
    scheduler.set_timesteps(steps, device=device)
    timesteps = scheduler.timesteps
    if hasattr(scheduler, "plms_timesteps"):  # it takes its second step twice
        timesteps = timesteps[torch.cat([timesteps.new_ones(1), timesteps.diff()]) != 0][-taken:]
        scheduler.timesteps = torch.cat([timesteps[:2], timesteps[1:]])
    else:
        first = (steps - taken) * scheduler.order
        scheduler.timesteps = timesteps[first:]
        for name in PER_STEP:
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name)[first:])
    scheduler.set_timesteps = lambda *args, **kwargs: None  # the pipeline would reset them


def _stack(arrays: Sequence[Any], device: Any) -> torch.Tensor:
    stacked: torch.Tensor = torch.from_numpy(np.stack(arrays)).to(device)
    return stacked


def _encode(vae: Any, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mode of the encoder's distribution: no randomness."""
    images = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)
    latents: torch.Tensor = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    return latents
