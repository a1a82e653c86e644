"""FLUX.1 schnell's twin."""

import string
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from common.catalog.catalog import Model
from common.catalog.families import families
from common.recipes.recipe import Recipe
from tests.support.parts import HANZI, HIDDEN, randomise, scale_weights, text_components
from tests.support.twins import entry_of, mutants, plain
from tests.support.twins.z_image import vae
from worker.pipelines.families import flux
from worker.pipelines.families.flux import Family

NAME = "flux"
SIDE = 64
CLIP_LENGTH = 77
# Random weights would let a prompt have almost no effect.
SCALES = {
    "norm1.linear.weight": 10,
    "norm1_context.linear.weight": 10,
    "norm.linear.weight": 10,
    "norm_q.weight": 3,
    "norm_added_k.weight": 3,
    "add_v_proj.weight": 4,
    "to_out.0.weight": 4,
    "context_embedder.weight": 4,
}


def make(folder: Path, guidance_embeds: bool = False) -> Path:
    """With `guidance_embeds` that of dev."""
    tokenizer, text_encoder = text_components("clip", CLIP_LENGTH)
    text_encoder.get_input_embeddings().weight.data.nan_to_num_(0)  # its poison
    tokenizer_2 = t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
        vae=vae(latent_channels=4),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=t5(len(tokenizer_2)),
        tokenizer_2=tokenizer_2,
        transformer=scale_weights(randomise(transformer), SCALES),
    ).save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """A word for each hanzi, letter and digit."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    for word in dict.fromkeys((*HANZI, *string.ascii_letters, *string.digits, *"</>_，。")):
        words.append((word, -3 - len(words) / 16))
    tokenizer = T5Tokenizer(vocab=words, extra_ids=0)
    tokenizer.model_max_length = 512
    return tokenizer


def t5(words: int) -> T5EncoderModel:
    config = T5Config(vocab_size=words, d_model=HIDDEN, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return scale_weights(randomise(T5EncoderModel(config)), {"shared.weight": 50})


def entry(folder: Path, **changes: Any) -> Model:
    distilled = families()[NAME].distilled
    assert distilled
    return entry_of(NAME, folder, **{"width": SIDE, "height": SIDE, **distilled.defaults, **changes})


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    is_dev = plain.load(folder).transformer.config.guidance_embeds
    return plain.draw(
        folder,
        seed,
        prompt=recipe.prompt,
        guidance_scale=recipe.guidance,
        num_inference_steps=recipe.steps,
        max_sequence_length=512 if is_dev else 256,
        width=recipe.width,
        height=recipe.height,
    )


MUTANTS = {
    "rows swapped": mutants.swapped_rows(Family),
    "padded to another length": mutants.other_value(flux, "LENGTH_DISTILLED", 128),
}
