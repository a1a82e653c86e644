"""The twin of Kolors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from numpy.typing import NDArray
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from tests.support.parts import HANZI, HIDDEN, randomise, scale_weights
from tests.support.twins import clip, mutants, plain, sdxl
from worker.pipelines.families.kolors import Family

NAME = "kolors"
LENGTH = 256
MORE_WORDS = 23  # of the text encoder than of the tokenizer


def make(folder: Path) -> Path:
    with TemporaryDirectory() as made:
        file = Path(made, "tokenizer.model")
        file.write_bytes(_vocabulary().SerializeToString(deterministic=True))
        tokenizer = ChatGLMTokenizer(str(file))
        KolorsPipeline(
            scheduler=EulerDiscreteScheduler(**{**clip.NOISE, "beta_end": 0.014}, timestep_spacing="leading"),
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer) + MORE_WORDS),
            unet=_unet(),
            vae=clip.vae(),
        ).save_pretrained(folder)
    return folder


def _vocabulary() -> ModelProto:
    """Bytes, and a token for each hanzi of the tests."""
    kinds, proto = ModelProto.SentencePiece, ModelProto()
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        proto.pieces.add(piece=piece, score=0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=kinds.BYTE)
    for place, piece in enumerate(("▁", *dict.fromkeys(HANZI))):
        proto.pieces.add(piece=piece, score=-place, type=kinds.NORMAL)
    return proto


def _unet() -> UNet2DConditionModel:
    """Most of what it reads pads the prompt: too loud, that hides the rest."""
    found = sdxl.unet(read=HIDDEN, pooled=HIDDEN, encoder_hid_dim=HIDDEN, encoder_hid_dim_type="text_proj")
    return scale_weights(found, {"attn2.to_v.weight": 1 / 16})


def _text_encoder(words: int) -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=words,
        hidden_size=HIDDEN,
        ffn_hidden_size=64,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=LENGTH,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    return scale_weights(
        randomise(ChatGLMModel(config)), {"word_embeddings.weight": 5, "dense.weight": 3, "dense_4h_to_h.weight": 3}
    )


def entry(folder: Path, **changes: Any) -> Model:
    return clip.entry(folder, NAME, "euler", **changes)


def reference(folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
    return plain.draw_recipe(folder, recipe, seed)


@contextmanager
def _mask_dropped(pipe: Any) -> Iterator[None]:
    """What pads a prompt is read."""

    def without_mask(encoder: Any, given: Any, named: dict[str, Any]) -> Any:
        return given, {**named, "attention_mask": None}

    hook = pipe.text_encoder.register_forward_pre_hook(without_mask, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _other_layer(pipe: Any) -> Iterator[None]:
    def without_last(encoder: Any, given: Any, output: Any) -> Any:
        output.hidden_states = output.hidden_states[:-1]
        return output

    hook = pipe.text_encoder.register_forward_hook(without_last)
    try:
        yield
    finally:
        hook.remove()


def _pooled_dropped(found: mutants.Arguments) -> mutants.Arguments:
    return {name: torch.zeros_like(rows) if "pooled" in name else rows for name, rows in found.items()}


MUTANTS = {
    "mask dropped": clip.other_pipe(Family, _mask_dropped),
    "rows swapped": mutants.swapped_rows(Family),
    "s for 1 + s": mutants.other_scale(-1.0),
    "negative ignored": mutants.negative_ignored(Family),
    "another layer": clip.other_pipe(Family, _other_layer),
    "pooled dropped": mutants.other_arguments(Family, _pooled_dropped),
}
