"""What the name of a weight says: the part of a LoRA that it is, and the layer of the model that it is for.

The formats are diffusers' (today's, and that of attention processors), PEFT's, kohya's, and names of layers without any
prefix. Layers are looked up among the model's own, with `.` and `_` alike, so nothing is guessed: a name that is not
there is None. SDXL's published LoRAs name the layers as the original Stable Diffusion does. Knows no tensors' values.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from worker.checkpoints.layout import LORA_CLASSES

DENOISER_PREFIXES = (
    "unet.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "",
)
TEXT_ENCODER_PREFIXES = {
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
}
PEFT_PREFIX = "base_model.model."

# A layer's name, and the rest of a weight's. Between may be the name of the adapter, as PEFT writes it.
DOWN = re.compile(r"(.+?)(?:\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(?:\.\w+)?\.weight")
UP = re.compile(r"(.+?)(?:\.lora_B|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)(?:\.\w+)?\.weight")
MAGNITUDE = re.compile(r"(.+?)\.lora_magnitude_vector(?:\.\w+){0,2}")  # of PEFT's DoRA
ENDS = ("alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")  # of kohya's and LyCORIS's names
# What else there is, by how a part of the name begins, and by how the name ends.
OTHER_KINDS = {
    "lokr_": "LoKr",
    "oft_": "OFT",
    "ia3_": "(IA)³",
    "on_input": "(IA)³",
    "lora_mid": "LoCon in a Tucker decomposition",
    "hada_t": "LoHa in a Tucker decomposition",
    "w_norm": "full difference of weights",
}
OTHER_ENDS = {
    ".diff": "full difference of weights",
    ".diff_b": "full difference of weights",
    ".b1.weight": "GLoRA",
    ".lora_B.bias": "LoRA with biases",
    ".lora_up.bias": "LoRA with biases",
}

BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)_(?:(\d+)_)?(.+)")
OUTSIDE_THE_BLOCKS = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
IN_A_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


class Place(NamedTuple):
    """A layer: the component of the pipeline, and the name of the module in it."""

    component: str
    module: str


def part_of(name: str) -> tuple[str, str] | None:
    """What part of a LoRA a weight of this name is, and the rest of the name; None if it is of no LoRA or LoHa."""
    layer, _, end = name.rpartition(".")
    if layer and end in ENDS:
        return end, layer
    if match := DOWN.fullmatch(name):
        return "down", match[1]
    if match := UP.fullmatch(name):
        return "up", match[1]
    match = MAGNITUDE.fullmatch(name)
    return ("magnitude", match[1]) if match else None


def other_kind(names: Iterable[str]) -> str | None:
    """What else than a LoRA, LoHa or DoRA these names belong to, as far as is known."""
    for name in names:
        for mark, kind in OTHER_KINDS.items():
            if any(part.startswith(mark) for part in name.split(".")):
                return kind
        for end, kind in OTHER_ENDS.items():
            if name.endswith(end):
                return kind
    return None


class Layers:
    """The layers of a pipeline that a LoRA can change, by all the names that files have for them."""

    def __init__(self, pipe: Any) -> None:
        self._components = changeable(pipe)
        self._modules = {
            name: {module.replace(".", "_"): module for module, layer in component.named_modules() if _fits(layer)}
            for name, component in self._components.items()
        }

    def find(self, name: str) -> Place | None:
        """The layer that this name means; None if there is none."""
        name = name.removeprefix(PEFT_PREFIX)
        for component, modules in self._modules.items():
            for prefix in TEXT_ENCODER_PREFIXES.get(component, DENOISER_PREFIXES):
                if name.startswith(prefix):
                    for spelling in self._spellings(component, name.removeprefix(prefix).replace(".", "_")):
                        if spelling in modules:
                            return Place(component, modules[spelling])
        return None

    def _spellings(self, component: str, name: str) -> Iterator[str]:
        if component in TEXT_ENCODER_PREFIXES:
            return _in_clip(name)
        return _in_a_denoiser(name, getattr(self._components[component].config, "layers_per_block", None))


def changeable(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components that LoRAs can change: the denoiser, and text encoders of a class that published LoRAs are for."""
    found = {name: pipe.components.get(name) for name in getattr(pipe, "_lora_loadable_modules", ())}
    return {
        name: component
        for name, component in found.items()
        if component is not None and (name not in TEXT_ENCODER_PREFIXES or type(component).__name__ in LORA_CLASSES)
    }


def _fits(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear) or (isinstance(layer, torch.nn.Conv2d) and layer.groups == 1)


def _in_clip(name: str) -> Iterator[str]:
    """Its layers are in a `text_model` in older transformers, and have other names in old LoRAs."""
    for inside in (name, name.removeprefix("text_model_"), f"text_model_{name}"):
        yield inside
        yield re.sub(r"_to_(q|k|v|out)$", r"_\1_proj", inside)


def _in_a_denoiser(name: str, layers: Any) -> Iterator[str]:
    name = name.replace("_processor_", "_")
    yield name
    if name.endswith("_to_out"):  # of old attention processors: it is a list now
        yield f"{name}_0"
    yield from _of_the_original(name, layers)


def _of_the_original(name: str, layers: Any) -> Iterator[str]:
    """A layer of a UNet under its name in the original Stable Diffusion. `layers` are those of one block."""
    if name in OUTSIDE_THE_BLOCKS:
        yield OUTSIDE_THE_BLOCKS[name]
    elif (match := BLOCK.fullmatch(name)) and isinstance(layers, int):
        side, at, kind, inside = match[1], int(match[2]), match[3], match[4]
        inside = IN_A_RESNET.get(inside, inside)
        if side == "middle_block":
            yield f"mid_block_{'attentions_0' if at == 1 else f'resnets_{at // 2}'}_{inside}"
        elif side == "input_blocks":
            block, layer = divmod(at - 1, layers + 1)
            yield f"down_blocks_{block}_{'attentions' if kind == '1' else 'resnets'}_{layer}_{inside}"
            yield f"down_blocks_{block}_downsamplers_0_{'conv' if inside == 'op' else inside}"
        else:
            block, layer = divmod(at, layers + 1)
            yield f"up_blocks_{block}_{'resnets' if kind == '0' else 'attentions'}_{layer}_{inside}"
            yield f"up_blocks_{block}_upsamplers_0_{inside}"
