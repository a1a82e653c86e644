"""image2image and inpaint: where denoising starts, and which pixels of the source stay.

    image2image    starts from the source plus noise by the strength, and takes only the last steps
    inpaint        the same; after each step, latents outside the mask are the source's again, with that step's noise,
                   unless the denoiser reads the mask

At strength 1 both start from pure noise. The img2img pipelines of diffusers are not used: they start LMS as if three
steps lay behind it, and PNDM at a wrong timestep, which leaves noise in the image. Here the schedule is truncated, so
every scheduler starts at its own first step. Imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import max_pool2d

from worker.pipelines.base import ImageRequest
from worker.pipelines.families.base import BaseFamily

# Attributes of a scheduler with one value per timestep.
PER_STEP = ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down")


class Img2Img:
    """The inputs of one call. All its requests have sources; all of them have masks, or none."""

    @torch.no_grad()
    def __init__(
        self,
        pipe: Any,
        family: BaseFamily,
        requests: Sequence[ImageRequest],
        generators: list[torch.Generator],
        arguments: Mapping[str, Any],
    ) -> None:
        """`arguments`: what the call of `pipe` gets beside generators and latents."""
        recipe, device, dtype = requests[0].recipe, pipe.device, family.latent_dtype(pipe)
        truncate_timesteps(pipe.scheduler, recipe.steps, recipe.steps_taken, _schedule(pipe, arguments))
        self._sources = _stack([request.source for request in requests], device)
        images = _images(self._sources)
        self._masks = None
        self._latent_mask = None
        self.arguments: dict[str, Any] = {}  # that the call of `pipe` gets beside the latents
        if requests[0].mask is not None:
            self._masks = _stack([request.mask for request in requests], device).unsqueeze(-1)
            masks = self._masks.permute(0, 3, 1, 2).to(dtype)
            self.arguments = family.mask_arguments(pipe, images, masks)
            if not family.reads_masks:
                # A latent may change if any pixel that it decodes to is inside the mask.
                grid = max_pool2d(masks, pipe.vae_scale_factor)
                self._latent_mask = family.arrange(pipe, grid.expand(-1, family.channels(pipe), -1, -1))
        self._source_latents = family.to_latents(pipe, images.to(pipe.vae.dtype)).to(dtype)
        self._noise = randn_tensor(self._source_latents.shape, generator=generators, device=device, dtype=dtype)
        self._scheduler = pipe.scheduler
        self._is_flow = not hasattr(pipe.scheduler, "add_noise")
        latents = self._noise
        if recipe.steps_taken < recipe.steps:
            latents = self._noisy_source(0)
            if not self._is_flow:
                latents = latents / pipe.scheduler.init_noise_sigma  # the pipeline multiplies by it
        self.latents = family.as_argument(pipe, latents, recipe.width, recipe.height)

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
        if self._is_flow:
            sigma = self._scheduler.sigmas[step].to(self._noise)
            return sigma * self._noise + (1 - sigma) * self._source_latents
        noisy: torch.Tensor = self._scheduler.add_noise(
            self._source_latents, self._noise, self._scheduler.timesteps[step : step + 1]
        )
        return noisy


def truncate_timesteps(scheduler: Any, steps: int, taken: int, set_timesteps: Callable[[], None]) -> None:
    """Make the next call of a new scheduler take only the last `taken` of the `steps` steps that are set so."""
    set_timesteps()
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
    if hasattr(scheduler, "order_list"):
        scheduler.order_list = scheduler.get_order_list(taken)
    if "original_inference_steps" in scheduler.config:  # LCM and TCD know their last step by it, and add no noise then
        scheduler.num_inference_steps = taken
    scheduler.set_timesteps = wraps(scheduler.set_timesteps)(lambda *args, **kwargs: None)  # else it resets them


class _Asked(Exception):
    """The pipeline has asked for its timesteps."""


def _schedule(pipe: Any, arguments: Mapping[str, Any]) -> Callable[[], None]:
    """Sets the timesteps as the pipeline does: it is called, and stopped where it asks for them.

    Some families compute them from the size, each in a way of its own.
    """
    scheduler, asked = pipe.scheduler, list[Any]()

    @wraps(scheduler.set_timesteps)  # pipelines look at its parameters
    def ask(*args: Any, **kwargs: Any) -> None:
        asked.extend((args, kwargs))
        raise _Asked

    original, scheduler.set_timesteps = scheduler.set_timesteps, ask
    try:
        pipe(**arguments)
    except _Asked:
        pass
    finally:
        del scheduler.set_timesteps
    args, kwargs = asked
    return partial(original, *args, **kwargs)


def _stack(arrays: Sequence[Any], device: Any) -> torch.Tensor:
    stacked: torch.Tensor = torch.from_numpy(np.stack(arrays)).to(device)
    return stacked


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Levels as numbers from -1 to 1, images × RGB × height × width."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
