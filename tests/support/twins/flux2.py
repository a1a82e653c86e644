"""FLUX.2 klein's twin: that of the base, which reads guidance and negative prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from numpy.typing import NDArray
from transformers import Qwen3Config, Qwen3ForCausalLM

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import randomise, scale_weights
from tests.support.twins import entry_of, mutants, plain, qwen
from worker.pipelines.families import flux2
from worker.pipelines.families.flux2 import Family

NAME = "flux2"
SIDE = 64
HIDDEN = 16
# Random weights would let a prompt have almost no effect.
SCALES = {"linear.weight": 4, "add_v_proj.weight": 4, "to_add_out.weight": 4, "norm_q.weight": 3}


def make(folder: Path, is_distilled: bool = False) -> Path:
    tokenizer = qwen.tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(flux2.LAYERS) * HIDDEN,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=scale_weights(randomise(transformer), SCALES),
        is_distilled=is_distilled,
    ).save_pretrained(folder)
    return folder


def qwen3(words: int) -> Qwen3ForCausalLM:
    """Deep enough for the layers that klein takes."""
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=max(flux2.LAYERS) + 1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return qwen.amplified(randomise(Qwen3ForCausalLM(config)))


def vae() -> AutoencoderKLFlux2:
    """With statistics of latents that are not those of noise."""
    found: AutoencoderKLFlux2 = randomise(
        AutoencoderKLFlux2(block_out_channels=(8, 16, 16, 16), latent_channels=4, norm_num_groups=8, sample_size=SIDE)
    )
    channels = torch.arange(found.bn.num_features)
    scale_weights(found, {"encoder.conv_out.weight": 20})  # as far from 0 as trained ones
    found.bn.running_mean.copy_(0.2 * channels.sin())
    found.bn.running_var.copy_(1 + 0.5 * channels.cos())
    return found


def entry(folder: Path, **changes: Any) -> Model:
    return entry_of(NAME, folder, **{"width": SIDE, "height": SIDE, **changes})


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    """The pipeline's own negative prompt is ""; another one goes in as its embeddings."""
    pipe = plain.load(folder)
    return plain.draw(
        folder,
        seed,
        prompt=recipe.prompt,
        negative_prompt_embeds=pipe.encode_prompt(recipe.negative_prompt)[0] if recipe.negative_prompt else None,
        guidance_scale=recipe.guidance,
        num_inference_steps=recipe.steps,
        width=recipe.width,
        height=recipe.height,
    )


def _mask_dropped(patch: pytest.MonkeyPatch) -> None:
    encode = Family.encode

    def without_mask(self: Family, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> mutants.Arguments:
        patch.setattr(pipe.tokenizer, "model_input_names", ["input_ids"])
        return encode(self, pipe, recipes, is_guided)

    patch.setattr(Family, "encode", without_mask)


MUTANTS = {
    "mask dropped": _mask_dropped,
    "padded to another length": mutants.other_value(flux2, "LENGTH", 256),
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": mutants.other_value(flux2, "LAYERS", (8, 18, 27)),
}
