"""What the twins with a UNet have: CLIP's text encoders, UNets and the entry; tiny, with random weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from common.catalog.catalog import Licence, Model
from common.catalog.families import families
from tests.support import parts
from tests.support.parts import HIDDEN, LAYERS, SIDE, randomise, scale_weights
from tests.support.twins import Mutant

LENGTH = 77
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def text_encoder(words: int, encoder_class: Any = CLIPTextModel, **changes: Any) -> Any:
    """Three layers, so that the last but one is not the first."""
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as published: no tokenizer has them
    layers = {**LAYERS, "num_hidden_layers": 3, "projection_dim": HIDDEN, **changes}
    encoder = randomise(
        encoder_class(CLIPTextConfig(vocab_size=words, max_position_embeddings=LENGTH, **ids, **layers))
    )
    return scale_weights(encoder, {"token_embedding.weight": 50})


def unet(**changes: Any) -> UNet2DConditionModel:
    """Of two sizes: with random weights the prompt has almost no effect, so what it changes is made larger."""
    config: dict[str, Any] = {
        "sample_size": SIDE // 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": HIDDEN,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    found = randomise(UNet2DConditionModel(**{**config, **changes}))
    return scale_weights(found, {"attn2.to_v.weight": 8, "attn2.to_out.0.weight": 8})


def vae() -> AutoencoderKL:
    """Its latents are as far from 0 as those of trained ones."""
    found = parts.vae()
    with torch.no_grad():
        found.quant_conv.weight[: found.config.latent_channels].mul_(20)
    return found


def entry(folder: Path, family: str, scheduler: str, **changes: Any) -> Model:
    values: dict[str, Any] = {
        **families()[family].defaults,
        "name": folder.name,
        "source": str(folder),
        "source_path": folder,
        "family": family,
        "licence": Licence("none", ""),
        "description": "noise",
        "width": SIDE,
        "height": SIDE,
        "scheduler": scheduler,
        "precision": "fp32",
        "safety_checker": False,
    }
    return Model(**{**values, **changes})


# Mutants


def other_pipe(family: Any, change: Callable[[Any], AbstractContextManager[None]]) -> Mutant:
    """While prompts are encoded, diffusers' pipeline is changed: its class is that of plain diffusers too."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        encode = family.encode

        def encode_changed(self: Any, pipe: Any, *given: Any) -> dict[str, Any]:
            with change(pipe):
                found: dict[str, Any] = encode(self, pipe, *given)
            return found

        patch.setattr(family, "encode", encode_changed)

    return mutate


@contextmanager
def without_last_layer(pipe: Any) -> Iterator[None]:
    layers = pipe.text_encoder.encoder.layers
    pipe.text_encoder.encoder.layers = layers[:-1]
    try:
        yield
    finally:
        pipe.text_encoder.encoder.layers = layers
