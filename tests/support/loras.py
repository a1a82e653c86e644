"""LoRA files in each format that people have, for tiny pipelines of diffusers, and what each must do to the weights.

A file is made from `Layer`s: low-rank factors for some layers of a component, which a format writes under its names.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.support.parts import HIDDEN, LAYERS, SIDE, randomise, text_components, vae

RANK = 2
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer of a pipeline, and the factors of a LoRA for it: `down` as the layer's weight with `rank` outputs."""

    component: str
    name: str
    down: torch.Tensor
    up: torch.Tensor
    own: torch.Tensor  # the layer's weight

    @property
    def product(self) -> torch.Tensor:
        return (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.own.shape)


@dataclass
class File:
    """A LoRA's file, and by how much it must change which weights."""

    weights: Weights
    by_hand: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, str] | None = None


def layers(pipe: Any, component: str, pattern: str, rank: int = RANK, seed: int = 1) -> list[Layer]:
    """Factors for all the linear and convolutional layers of the component whose whole names match."""
    generator, found = torch.Generator().manual_seed(seed), []
    for name, layer in getattr(pipe, component).named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and re.fullmatch(pattern, name):
            own = layer.weight.detach().clone()
            ones = (1,) * (own.ndim - 2)
            down = 0.3 * torch.randn(rank, *own.shape[1:], generator=generator)
            up = 0.3 * torch.randn(own.shape[0], rank, *ones, generator=generator)
            found.append(Layer(component, name, down, up, own))
    assert found, pattern
    return found


def file(
    chosen: list[Layer], write: Callable[[Layer], Weights], change: Callable[[Layer], torch.Tensor] | None = None
) -> File:
    """These layers as the format `write` has them; the change of each is the product of its factors, if not told."""
    weights = {key: value.contiguous() for layer in chosen for key, value in write(layer).items()}
    change = change or (lambda layer: layer.product)
    return File(weights, {(layer.component, layer.name): change(layer) for layer in chosen})


# Formats


def lora_a_b(prefix: Callable[[Layer], str]) -> Callable[[Layer], Weights]:
    def write(layer: Layer) -> Weights:
        name = prefix(layer) + layer.name
        return {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}

    return write


diffusers = lora_a_b(lambda layer: f"{layer.component}.")


def diffusers_text(layer: Layer) -> Weights:
    """CLIP's layers as an older transformers had them."""
    name = f"{layer.component}.text_model.{layer.name}"
    return {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}


def attention_processors(prefix: str) -> Callable[[Layer], Weights]:
    def write(layer: Layer) -> Weights:
        attention, _, projection = layer.name.removesuffix(".0").rpartition(".")
        name = f"{prefix}{attention}.processor.{projection}_lora"
        return {f"{name}.down.weight": layer.down, f"{name}.up.weight": layer.up}

    return write


def text_attention(layer: Layer) -> Weights:
    attention, _, projection = layer.name.rpartition(".")
    name = f"{layer.component}.text_model.{attention}.to_{projection.removesuffix('_proj')}_lora"
    return {f"{name}.down.weight": layer.down, f"{name}.up.weight": layer.up}


def kohya_name(layer: Layer) -> str:
    prefix = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te_text_model"}
    return f"{prefix[layer.component]}_{layer.name.replace('.', '_')}"


def kohya(alpha: float | None = None, name: Callable[[Layer], str] = kohya_name) -> Callable[[Layer], Weights]:
    def write(layer: Layer) -> Weights:
        written = {f"{name(layer)}.lora_down.weight": layer.down, f"{name(layer)}.lora_up.weight": layer.up}
        return written if alpha is None else {**written, f"{name(layer)}.alpha": torch.tensor(alpha)}

    return write


def of_the_original(layer: Layer) -> str:
    """Kohya's names for SDXL, of the tiny UNet with one layer a block."""
    names = {
        "down_blocks.0.resnets.0": "input_blocks_1_0",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
        "down_blocks.1.resnets.0": "input_blocks_3_0",
        "down_blocks.1.attentions.0": "input_blocks_3_1",
        "mid_block.resnets.0": "middle_block_0",
        "mid_block.attentions.0": "middle_block_1",
        "mid_block.resnets.1": "middle_block_2",
        "up_blocks.0.resnets.0": "output_blocks_0_0",
        "up_blocks.0.attentions.0": "output_blocks_0_1",
        "up_blocks.0.attentions.1": "output_blocks_1_1",
        "up_blocks.0.resnets.1": "output_blocks_1_0",
        "up_blocks.0.upsamplers.0": "output_blocks_1_2",
        "up_blocks.1.resnets.0": "output_blocks_2_0",
        "up_blocks.1.resnets.1": "output_blocks_3_0",
        "time_emb_proj": "emb_layers_1",
        "conv1": "in_layers_2",
        "conv2": "out_layers_3",
        "conv_shortcut": "skip_connection",
        "time_embedding.linear_1": "time_embed_0",
        "add_embedding.linear_2": "label_emb_0_2",
    }
    if layer.component != "unet":
        number = "2" if layer.component.endswith("2") else "1"
        return f"lora_te{number}_text_model_{layer.name.replace('.', '_')}"
    name = layer.name
    for ours, theirs in names.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\1{theirs}", name)
    assert name.startswith(("input", "middle", "output", "time_embed_", "label")), name
    return f"lora_unet_{name.replace('.', '_')}"


def loha(alpha: float, rank: int, seed: int = 5) -> tuple[Callable[[Layer], Weights], Callable[[Layer], torch.Tensor]]:
    """The format, and the change that its weights mean."""

    def factors(layer: Layer) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        own = layer.own.flatten(1)
        for _ in range(2):
            yield 0.6 * torch.randn(own.shape[0], rank, generator=generator)
            yield 0.6 * torch.randn(rank, own.shape[1], generator=generator)

    def write(layer: Layer) -> Weights:
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        found = {f"{kohya_name(layer)}.{name}": value for name, value in zip(names, factors(layer), strict=True)}
        return {**found, f"{kohya_name(layer)}.alpha": torch.tensor(alpha)}

    def change(layer: Layer) -> torch.Tensor:
        w1_a, w1_b, w2_a, w2_b = factors(layer)
        return ((w1_a @ w1_b) * (w2_a @ w2_b)).reshape(layer.own.shape) * alpha / rank

    return write, change


def dora_lengths(layer: Layer) -> torch.Tensor:
    """Half as long again as the rows are."""
    return 1.5 * layer.own.flatten(1).norm(dim=1)


def dora_change(alpha: float) -> Callable[[Layer], torch.Tensor]:
    def change(layer: Layer) -> torch.Tensor:
        whole = (layer.own + layer.product * alpha / RANK).flatten(1)
        whole = whole / whole.norm(dim=1, keepdim=True) * dora_lengths(layer)[:, None]
        return whole.reshape(layer.own.shape) - layer.own

    return change


# Pipelines


def stable_diffusion(text: str) -> StableDiffusionPipeline:
    tokenizer, text_encoder = text_components(text, 77)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer, text_encoder = text_components("clip", 77)
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, projection_dim=HIDDEN, **ids, **LAYERS
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder.eval(),
        text_encoder_2=randomise(CLIPTextModelWithProjection(config)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=1,
            projection_class_embeddings_input_dim=6 * 8 + HIDDEN,
            cross_attention_dim=2 * HIDDEN,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def unet(**settings: Any) -> UNet2DConditionModel:
    """Smaller than that of the suite's checkpoints: many pictures are drawn with it."""
    small = randomise(
        UNet2DConditionModel(
            **{
                "sample_size": SIDE // 8,
                "layers_per_block": 1,
                "block_out_channels": (16, 32),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": 4,
                "cross_attention_dim": HIDDEN,
                "norm_num_groups": 8,
                **settings,
            }
        )
    )
    with torch.no_grad():  # with random weights the prompt has almost no effect
        for name, weight in small.named_parameters():
            if ".attn2." in name and name.endswith(("to_v.weight", "to_out.0.weight")):
                weight.mul_(8)
            if name.endswith(("conv2.bias", "proj_in.bias")):
                weight.fill_(0.2)
    return small


def flux() -> FluxPipeline:
    """Without text encoders: the prompt arrives as embeddings."""
    transformer: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=[4, 4, 8],
    )
    randomise(transformer)
    with torch.no_grad():  # with random weights a block has almost no effect
        for name, weight in transformer.named_parameters():
            if ".norm" in name or name.startswith("proj_out"):
                weight.mul_(6)
    autoencoder = vae()
    autoencoder.register_to_config(shift_factor=0.0)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def draw(pipe: Any) -> np.ndarray:
    """The levels of one picture."""
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, FluxPipeline):
        generator = torch.Generator().manual_seed(3)
        prompt = {
            "prompt_embeds": torch.randn(1, 6, HIDDEN, generator=generator),
            "pooled_prompt_embeds": torch.randn(1, HIDDEN, generator=generator),
        }
    else:
        prompt = {"prompt": "红色的圆形", "guidance_scale": 5.0}
    pixels = pipe(
        **prompt,
        num_inference_steps=2,
        width=SIDE,
        height=SIDE,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    return (pixels * 255).round().astype(np.int16)
