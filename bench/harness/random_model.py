"""A model of the size of Stable Diffusion 1.x with a Chinese BERT, of random weights: benches on an accelerator render
with it, so that they need no download. It renders noise, in the same time as a trained model.

`write(folder)` makes the checkpoint (2.1 GB in half precision) and a catalogue that names it. Needs torch.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LMSDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizer

NAME = "random-sd1"
RECIPE: dict[str, Any] = {"model": NAME, "width": 512, "height": 512, "steps": 20}
WORDS = 21_128  # in the vocabulary of Chinese Berts

CATALOG = f"""
default = "{NAME}"

[models.{NAME}]
source = "./{NAME}"
family = "stable-diffusion-zh"
description = "Random weights of the size of Stable Diffusion 1.x."
licence = "none"
licence_url = ""
width = 512
height = 512
steps = 20
scheduler = "lms"
guidance = 7.5
token_limit = 512
microbatch = 8
safety_checker = false
"""


def write(folder: Path) -> Path:
    """The file of the catalogue."""
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=BertModel(BertConfig(vocab_size=WORDS)).half(),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half(),
        scheduler=LMSDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / NAME)
    catalog = folder / "catalog.toml"
    catalog.write_text(CATALOG)
    return catalog


def _vae() -> AutoencoderKL:
    widths = (128, 256, 512, 512)
    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    vae = AutoencoderKL(
        block_out_channels=widths, down_block_types=down, up_block_types=up, layers_per_block=2, sample_size=512
    )
    return vae.half()


def _tokenizer() -> BertTokenizer:
    """[PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103, as Chinese Berts have it; then hanzi."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [chr(0x4E00 + i) for i in range(WORDS - len(words))]
    return BertTokenizer(vocab={word: at for at, word in enumerate(words)}, model_max_length=512)
