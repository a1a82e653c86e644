"""Stable Diffusion whose UNet was trained to inpaint: it also reads the mask, and the source without what is in it.

Nine channels: four of latents, one of the mask, four of the source's latents. Without a mask all is to be painted, as
with a white one. Imports torch.
"""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from common.recipes.recipe import Recipe
from worker.pipelines.families import stable_diffusion


class Family(stable_diffusion.Family):
    pipeline_class = diffusers.StableDiffusionInpaintPipeline
    reads_masks = True

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        size = recipes[0].height, recipes[0].width
        images = torch.zeros(len(recipes), 3, *size, device=pipe.device)
        everything = self.mask_arguments(pipe, images, torch.ones_like(images[:, :1]))
        return {**super().encode(pipe, recipes, is_guided), **everything}

    def mask_arguments(self, pipe: Any, images: torch.Tensor, masks: torch.Tensor) -> dict[str, Any]:
        return {"image": images.float() * 0.5 + 0.5, "mask_image": masks.float()}  # both from 0 to 1
