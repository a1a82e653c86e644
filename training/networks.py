"""The architecture of mini-zh's networks: Taiyi's, much smaller."""

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel

SIDE = 128
LATENT_SIDE = SIDE // 8
SCALING = 0.18215
TOKENS = 48
SPREAD = 0.08
WIDTH = 96  # of a token's vector

NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIDE,
        scaling_factor=SCALING,
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def text_encoder(vocabulary: int) -> BertModel:
    encoder = BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=TOKENS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=SPREAD,  # BERT's 0.02 is for a width of 768; at 96 attention would hardly start
        )
    )
    encoder.embeddings.position_embeddings.weight.data = SPREAD * _waves(TOKENS, WIDTH)
    return encoder


def _waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines, from which the encoder quickly learns the neighbours of a character."""
    place = torch.arange(positions).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))
    return torch.cat([torch.sin(place * frequency), torch.cos(place * frequency)], 1) * math.sqrt(2)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
