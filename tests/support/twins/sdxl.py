"""The twin of Stable Diffusion XL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModelWithProjection

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import HIDDEN, clip_tokenizer, scale_weights
from tests.support.twins import clip, mutants, plain
from worker.pipelines.families.sdxl import Family

NAME = "sdxl"


def make(folder: Path) -> Path:
    tokenizer, tokenizer_2 = clip_tokenizer(clip.LENGTH), clip_tokenizer(clip.LENGTH, pad="!")
    StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler(**clip.NOISE, timestep_spacing="leading"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=clip.text_encoder(len(tokenizer)),
        text_encoder_2=clip.text_encoder(len(tokenizer_2), CLIPTextModelWithProjection, hidden_act="gelu"),
        unet=unet(read=2 * HIDDEN, pooled=HIDDEN),
        vae=clip.vae(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def unet(read: int, pooled: int, **changes: Any) -> UNet2DConditionModel:
    """It also reads the pooled output, and the six numbers of the picture's size."""
    found = clip.unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=read,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
        **changes,
    )
    return scale_weights(found, {"add_embedding.linear_1.weight": 4})


def entry(folder: Path, **changes: Any) -> Model:
    return clip.entry(folder, NAME, "euler", **changes)


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    return plain.draw_recipe(folder, recipe, seed, negative_prompt=recipe.negative_prompt or None)


@contextmanager
def _without_zeros(pipe: Any) -> Iterator[None]:
    """As in diffusers' own call of several, of which one has a negative prompt."""
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        yield
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)


def _pooled_dropped(found: mutants.Arguments) -> mutants.Arguments:
    return {name: torch.zeros_like(rows) if "pooled" in name else rows for name, rows in found.items()}


def _first_encoder_only(found: mutants.Arguments) -> mutants.Arguments:
    halves = {name: rows.chunk(2, -1) for name, rows in found.items() if "pooled" not in name}
    return {**found, **{name: torch.cat([first, first], -1) for name, (first, _) in halves.items()}}


MUTANTS = {
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(-1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": clip.other_pipe(Family, clip.without_last_layer),
    "no negative prompt is an empty one": clip.other_pipe(Family, _without_zeros),
    "pooled dropped": mutants.other_arguments(Family, _pooled_dropped),
    "second encoder dropped": mutants.other_arguments(Family, _first_encoder_only),
}
