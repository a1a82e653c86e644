"""Qwen-Image's twin."""

import re
from pathlib import Path

import numpy as np
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from numpy.typing import NDArray
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import HIDDEN, LAYERS, randomise, scale_weights
from tests.support.twins import entry_of, mutants, plain, qwen
from worker.pipelines.families import qwen_image
from worker.pipelines.families.qwen_image import TEMPLATE, Family

NAME = "qwen-image"
SIDE = 64
CHANNELS = 4  # of the latents


def make(folder: Path) -> Path:
    tokenizer = qwen.tokenizer(
        *re.findall(r" ?[A-Za-z]+", TEMPLATE.before)
    )  # the template has 34 tokens of the real one
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 4, 4),
    )
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=scale_weights(
            randomise(transformer),
            {
                "_mod.1.weight": 8,
                "txt_in.weight": 4,
                "add_v_proj.weight": 8,
                "to_out.0.weight": 8,
                "proj_out.weight": 2,
            },
        ),
    ).save_pretrained(folder)
    return folder


def _text_encoder(words: int) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        **LAYERS,
        "vocab_size": words,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
    }
    tokens = dict.fromkeys(("image", "video", "vision", "vision_start", "vision_end"), 0)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **{f"{name}_token_id": id for name, id in tokens.items()}
    )
    return qwen.amplified(randomise(Qwen2_5_VLForConditionalGeneration(config)))


def _vae() -> AutoencoderKLQwenImage:
    found = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.5, 0.25, 0.0, 0.5],
        latents_std=[2.0, 1.5, 2.5, 3.0],
    )
    return scale_weights(randomise(found), {"encoder.conv_out.weight": 90})  # as far from 0 as trained ones


def entry(folder: Path) -> Model:
    return entry_of(NAME, folder, width=SIDE, height=SIDE)


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    return plain.draw(
        folder,
        seed,
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or " ",
        true_cfg_scale=recipe.guidance,
        num_inference_steps=recipe.steps,
        width=recipe.width,
        height=recipe.height,
    )


MUTANTS = {
    "mask dropped": mutants.without(Family, "prompt_embeds_mask", "negative_prompt_embeds_mask"),
    "rows swapped": mutants.swapped_rows(Family),
    "1 + s for s": mutants.other_scale(1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": mutants.other_value(qwen_image, "LAYER", -2),
}
