"""Z-Image's twin."""

from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from numpy.typing import NDArray
from torch.nn.functional import pad

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import HIDDEN, randomise, scale_weights
from tests.support.twins import entry_of, mutants, plain, qwen
from worker.pipelines.families import z_image
from worker.pipelines.families.z_image import Family

NAME = "z-image"
SIDE = 64


def make(folder: Path) -> Path:
    tokenizer = qwen.tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=HIDDEN,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=HIDDEN,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(latent_channels=4),
        text_encoder=qwen.qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=scale_weights(randomise(transformer), {"adaLN_modulation.0.weight": 8, "cap_embedder.1.weight": 4}),
    ).save_pretrained(folder)
    return folder


def vae(latent_channels: int) -> AutoencoderKL:
    """Flux's, which has a shift (here a large one) and no convolutions around the latents."""
    found = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=0.3611,
        shift_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return scale_weights(randomise(found), {"encoder.conv_out.weight": 10})  # as far from 0 as trained ones


def entry(folder: Path) -> Model:
    return entry_of(NAME, folder, width=SIDE, height=SIDE)


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    return plain.draw_recipe(folder, recipe, seed)


def _padded(arguments: mutants.Arguments) -> mutants.Arguments:
    """As embeddings would be whose mask was dropped."""
    longest = max(len(row) for rows in arguments.values() for row in rows)
    return {name: [pad(row, (0, 0, 0, longest - len(row))) for row in rows] for name, rows in arguments.items()}


MUTANTS = {
    "mask dropped": mutants.other_arguments(Family, _padded),
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(-1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": mutants.other_value(z_image, "LAYER", -1),
}
