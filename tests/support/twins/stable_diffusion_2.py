"""The twin of Stable Diffusion 2.x: OpenCLIP, of which the last layer was cut off, and v-prediction."""

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import clip_tokenizer
from tests.support.twins import clip, mutants, plain
from worker.pipelines.families.stable_diffusion import Family

NAME = "stable-diffusion-2"


def make(folder: Path) -> Path:
    tokenizer = clip_tokenizer(clip.LENGTH, pad="!")
    StableDiffusionPipeline(
        scheduler=DDIMScheduler(
            **clip.NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        tokenizer=tokenizer,
        text_encoder=clip.text_encoder(len(tokenizer), hidden_act="gelu"),
        unet=clip.unet(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True),
        vae=clip.vae(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def entry(folder: Path, **changes: Any) -> Model:
    return clip.entry(folder, "stable-diffusion", "ddim", **changes)


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    return plain.draw_recipe(folder, recipe, seed)


MUTANTS = {
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(-1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": clip.other_pipe(Family, clip.without_last_layer),
}
