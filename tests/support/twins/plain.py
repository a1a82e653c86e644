"""Plain diffusers: what it loads from a folder, what it draws, and what its VAE keeps of a picture."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from common.recipes.recipe import Recipe
from tests.support.devices import DEVICE


@cache
def load(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(folder: Path, seed: int, **arguments: Any) -> NDArray[np.uint8]:
    """The picture of one call with these arguments."""
    (image,) = load(folder)(**arguments, generator=torch.Generator().manual_seed(seed)).images
    return np.asarray(image)


def draw_recipe(folder: Path, recipe: Recipe, seed: int, **others: Any) -> NDArray[np.uint8]:
    """The picture of a recipe, with the names that most pipelines have for its values; `others` replace or add some."""
    named = {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "guidance_scale": recipe.guidance,
        "num_inference_steps": recipe.steps,
        "width": recipe.width,
        "height": recipe.height,
    }
    return draw(folder, seed, **{**named, **others})


@torch.no_grad()
def encode_and_decode(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the VAE alone makes of a picture."""
    vae = load(folder).vae
    images = torch.from_numpy(pixels.copy()).to(DEVICE).permute(2, 0, 1)[None] / 127.5 - 1
    if type(vae).__name__ == "AutoencoderKLQwenImage":
        images = images[:, :, None]  # a video of one frame
    decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.reshape(3, *pixels.shape[:2])
    levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).cpu()
    return levels.numpy().astype(np.uint8)
