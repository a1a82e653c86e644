"""Models of random weights in the sizes of the published ones, made on the device: no file and no download.

`diffusers_pipeline(name, device, tiny)` gives what the worker would have loaded. They render noise, in the same time as
trained ones. Sizes are those of the published configurations; `tiny` ones have the same parts. Needs torch.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, ZImageTransformer2DModel
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from common.catalog.catalog import Licence, Model
from common.catalog.families import families
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FAMILIES = {"sd-1.5": "stable-diffusion", "sdxl": "sdxl", "z-image": "z-image"}
RECIPES: dict[str, dict[str, Any]] = {  # z-image's is that of its Turbo
    "sd-1.5": {"width": 512, "height": 512, "steps": 20, "scheduler": "lms", "guidance": 7.5, "precision": "fp16"},
    "sdxl": {"width": 1024, "height": 1024, "steps": 20, "scheduler": "euler", "guidance": 5.0, "precision": "fp16"},
    "z-image": {"width": 1024, "height": 1024, "steps": 8, "scheduler": "flow_euler", "guidance": 0.0},
}
DTYPES = {"sd-1.5": torch.float16, "sdxl": torch.float16, "z-image": torch.bfloat16}
SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


def diffusers_pipeline(name: str, device: torch.device, tiny: bool) -> DiffusersPipeline:
    dtype = torch.float32 if tiny else DTYPES[name]
    with made_on(device, dtype):
        pipe = MAKERS[name](tiny)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            finite(component.to(device, dtype).eval())
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda" and name != "z-image":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    folder = Path(tempfile.mkdtemp(prefix="huafang-bench-"))
    pipe.save_config(folder)
    for component in pipe.components:
        (folder / component).mkdir(exist_ok=True)
    return DiffusersPipeline(entry(name, folder, tiny), device, pipe, dict(pipe.scheduler.config))


def entry(name: str, folder: Path, tiny: bool) -> Model:
    family = FAMILIES[name]
    small = {"width": 64, "height": 64, "steps": 3} if tiny else {}
    named = {"name": name, "family": family, "source": str(folder), "source_path": folder, "description": "noise"}
    without = {"licence": Licence("none", ""), "safety_checker": False}
    return Model(**{**families()[family].defaults, **RECIPES[name], **small, **named, **without})


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New modules are on this device in this precision, without a copy on the CPU."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def finite(module: torch.nn.Module) -> None:
    """Some parameters are made of whatever was in memory."""
    with torch.no_grad():
        for values in (*module.parameters(), *module.buffers()):
            if values.is_floating_point() and not values.isfinite().all():
                values.zero_()


def sd(tiny: bool) -> Any:
    return diffusers.StableDiffusionPipeline(
        scheduler=diffusers.LMSDiscreteScheduler(**NOISE),
        tokenizer=tokenizer(77),
        text_encoder=clip(tiny),
        unet=sd_unet(tiny),
        vae=vae(tiny, sample_size=512),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tiny: bool) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        text_encoder=clip(tiny),
        text_encoder_2=clip_big(tiny),
        unet=sdxl_unet(tiny),
        vae=vae(tiny, sample_size=1024, scaling_factor=0.13025),
        add_watermarker=False,
    )


def z_image(tiny: bool) -> Any:
    flux: dict[str, Any] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer(512),
        text_encoder=qwen3_4b(tiny),
        transformer=z_image_transformer(tiny),
        vae=vae(tiny, sample_size=1024, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **flux),
    )


MAKERS: dict[str, Callable[[bool], Any]] = {"sd-1.5": sd, "sdxl": sdxl, "z-image": z_image}


# The parts


def clip(tiny: bool) -> CLIPTextModel:
    """CLIP's ViT-L/14."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    real = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, **(size if tiny else real)))


def clip_big(tiny: bool) -> CLIPTextModelWithProjection:
    """OpenCLIP's ViT-bigG/14."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    real = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    projection = {"projection_dim": 32 if tiny else 1280, "hidden_act": "gelu"}
    return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, **(size if tiny else real), **projection))


def qwen3_4b(tiny: bool) -> Qwen3Model:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    real = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    heads = {"num_key_value_heads": 2 if tiny else 8, "head_dim": 16 if tiny else 128}
    return Qwen3Model(Qwen3Config(vocab_size=1024 if tiny else 151_936, **(size if tiny else real), **heads))


def sd_unet(tiny: bool) -> UNet2DConditionModel:
    if not tiny:
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        sample_size=8,
    )


def sdxl_unet(tiny: bool) -> UNet2DConditionModel:
    real: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    }
    size: dict[str, Any] = {
        "block_out_channels": (32, 32, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        use_linear_projection=True,
        **(size if tiny else real),
    )


def z_image_transformer(tiny: bool) -> ZImageTransformer2DModel:
    """Those of diffusers' defaults are the published sizes."""
    small: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    small |= {"cap_feat_dim": 32, "axes_dims": [8, 4, 4], "axes_lens": [1024, 64, 64]}
    return ZImageTransformer2DModel(**(small if tiny else {}))


def vae(tiny: bool, **config: Any) -> AutoencoderKL:
    widths = (8, 8, 16, 16) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1 if tiny else 2,
        norm_num_groups=8 if tiny else 32,
        **config,
    )


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A token for each byte, and the special ones of both kinds of text encoders."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=length,
    )
    return found
