"""The twin of Stable Diffusion with a UNet of nine channels, for inpainting."""

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline
from numpy.typing import NDArray
from PIL import Image

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import clip_tokenizer
from tests.support.twins import clip, mutants, plain
from worker.pipelines.families.stable_diffusion_inpaint import Family

NAME = "stable-diffusion-inpaint"


def make(folder: Path) -> Path:
    tokenizer = clip_tokenizer(clip.LENGTH)
    StableDiffusionInpaintPipeline(
        scheduler=PNDMScheduler(**clip.NOISE, skip_prk_steps=True),
        tokenizer=tokenizer,
        text_encoder=clip.text_encoder(len(tokenizer)),
        unet=clip.unet(in_channels=9),
        vae=clip.vae(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def entry(folder: Path, **changes: Any) -> Model:
    return clip.entry(folder, NAME, "pndm", **changes)


def reference(
    folder: Path,
    recipe: Recipe,
    seed: int,
    source: NDArray[np.uint8] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Without a source, that of a white mask, under which the source does not count."""
    size = recipe.width, recipe.height
    return plain.draw_recipe(
        folder,
        recipe,
        seed,
        image=Image.new("RGB", size, "red") if source is None else Image.fromarray(source),
        mask_image=Image.new("L", size, "white") if mask is None else Image.fromarray(mask.astype(np.uint8) * 255),
    )


def _black(found: mutants.Arguments) -> mutants.Arguments:
    return {**found, "mask_image": found["mask_image"] * 0}


MUTANTS = {
    "mask dropped": mutants.other_arguments(Family, _black),
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(-1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": clip.other_pipe(Family, clip.without_last_layer),
}
