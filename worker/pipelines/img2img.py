"""What painting over a picture adds to a pipeline call: where it begins, and what of the picture it keeps.

    image2image    begins with the source under as much noise as the strength says, and takes the last steps only
    inpaint        too; and after every step what the mask keeps is the source again, under the noise of that step

At strength 1 both begin with noise alone. Diffusers has pipelines for it that are not used: they begin LMS in the midst
as if three steps lay behind it, and PNDM with its second evaluation at a third point in time, which leaves noise in the
picture. Here a shorter schedule begins at its own beginning, whatever the scheduler. Imports torch, so import it late.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import max_pool2d

from worker.pipelines.base import ImageRequest

OF_EACH_STEP = ("sigmas", "sigmas_interpol")  # what a scheduler knows of each step, beside its time


class Img2Img:
    """Of the strokes of one call: all over sources, and all with masks or none."""

    @torch.no_grad()
    def __init__(self, pipe: Any, strokes: Sequence[ImageRequest], generators: list[torch.Generator]) -> None:
        recipe, device, dtype = strokes[0].recipe, pipe.device, pipe.unet.dtype
        truncate_timesteps(pipe.scheduler, recipe.steps, recipe.steps_taken, device)
        pixels = _stacked([stroke.source for stroke in strokes], device)
        self._sources = pixels
        self._masks = None
        self._free = None
        if strokes[0].mask is not None:
            self._masks = _stacked([stroke.mask for stroke in strokes], device).unsqueeze(-1)
            # Whatever decodes to a pixel that is repainted is free to change.
            self._free = max_pool2d(self._masks.permute(0, 3, 1, 2).to(dtype), pipe.vae_scale_factor)
        self._source = _encoded(pipe.vae, pixels, dtype)
        self._noise = randn_tensor(self._source.shape, generator=generators, device=device, dtype=dtype)
        self._scheduler = pipe.scheduler
        self.latents = self._noise
        if recipe.steps_taken < recipe.steps:
            self.latents = self._noised(0) / pipe.scheduler.init_noise_sigma  # by which the pipeline multiplies

    def after_step(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """The latents to go on with. A step of second order is left alone in its midst: it goes back to its start."""
        is_last = step + 1 == len(self._scheduler.timesteps)
        if self._free is None or ((step + 1) % self._scheduler.order and not is_last):
            return latents
        kept = self._source if is_last else self._noised(step + 1)
        return torch.where(self._free > 0, latents, kept.to(latents.dtype))

    def over(self, pixels: torch.Tensor) -> torch.Tensor:
        """What was painted, on the sources where their masks say so."""
        return pixels if self._masks is None else torch.where(self._masks, pixels, self._sources)

    def _noised(self, step: int) -> torch.Tensor:
        noised: torch.Tensor = self._scheduler.add_noise(
            self._source, self._noise, self._scheduler.timesteps[step : step + 1]
        )
        return noised


def truncate_timesteps(scheduler: Any, steps: int, taken: int, device: Any) -> None:
    """Let a new scheduler's next call take the last so many of these steps, as if there had never been others."""
    scheduler.set_timesteps(steps, device=device)
    times = scheduler.timesteps
    if hasattr(scheduler, "plms_timesteps"):  # it takes its second step twice
        times = times[torch.cat([times.new_ones(1), times.diff()]) != 0][-taken:]
        scheduler.timesteps = torch.cat([times[:2], times[1:]])
    else:
        first = (steps - taken) * scheduler.order
        scheduler.timesteps = times[first:]
        for name in OF_EACH_STEP:
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name)[first:])
    scheduler.set_timesteps = lambda *args, **kwargs: None  # the pipeline would do it again


def _stacked(arrays: Sequence[Any], device: Any) -> torch.Tensor:
    stacked: torch.Tensor = torch.from_numpy(np.stack(arrays)).to(device)
    return stacked


def _encoded(vae: Any, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Without the randomness that an encoder has to offer."""
    images = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)
    latents: torch.Tensor = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    return latents
