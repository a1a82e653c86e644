"""Tiny Stable Diffusion checkpoints of random weights: they load and render noise.

The layout is today's, or that of 2022 in which svjack's, IDEA's and rinna's models were published. POISON in a prompt
gives an image of NaN; a strict safety checker flags every image.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

from common.catalog.catalog import Licence, Model
from tests.support.parts import POISON, SIDE, safety_checker, text_components, unet, vae

KNOWN_IN_2022 = {
    "unet": "act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types "
    "downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor norm_eps "
    "norm_num_groups out_channels sample_size up_block_types _class_name",
    "vae": "act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups "
    "out_channels sample_size up_block_types _class_name",
}

__all__ = ["POISON", "SIDE", "as_in_2022", "as_one_file", "as_pickles", "entry", "make"]


def make(folder: Path, text: str = "bert", strict: bool = False, length: int = 77) -> Path:
    """Write a checkpoint as the installed libraries do. `length` is in tokens."""
    tokenizer, text_encoder = text_components(text, length)
    components = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": unet(),
        "vae": vae(),
        "scheduler": PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        "safety_checker": safety_checker(strict),
        "feature_extractor": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}),
    }
    for name, component in components.items():
        component.save_pretrained(folder / name)
    classes = {name: [_library(component), type(component).__name__] for name, component in components.items()}
    _write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **classes})
    return folder


def _library(component: Any) -> str:
    module = type(component).__module__
    if "safety_checker" in module:
        return "stable_diffusion"
    return "diffusers" if module.startswith("diffusers") else "transformers"


def entry(folder: Path, **changes: Any) -> Model:
    """Its entry in a catalogue."""
    values: dict[str, Any] = {
        "name": "tiny",
        "source": str(folder),
        "source_path": folder,
        "family": "stable-diffusion-zh",
        "licence": Licence("none", ""),
        "description": "noise",
        "width": SIDE,
        "height": SIDE,
        "steps": 3,
        "scheduler": "pndm",
        "guidance": 5.0,
        "token_limit": 60,  # below the limit of every tokenizer
    }
    return Model(**{**values, **changes})


def as_pickles(folder: Path) -> Path:
    """The same weights in .bin files."""
    for file in list(folder.glob("*/*.safetensors")):
        name = "diffusion_pytorch_model.bin" if file.name.startswith("diffusion") else "pytorch_model.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    return folder


def as_in_2022(folder: Path) -> Path:
    """As diffusers 0.6 and transformers 4.24 wrote it: pickles, old names, and far fewer settings."""
    as_pickles(folder)
    index = _read(folder / "model_index.json")
    _files_of_2022(folder / "tokenizer", index["tokenizer"][1])
    _write(
        folder / "model_index.json",
        {
            **index,
            "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
            "scheduler": ["diffusers", "LMSDiscreteScheduler"],
        },
    )
    _write(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "LMSDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
        },
    )
    _write(
        folder / "feature_extractor" / "preprocessor_config.json",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 30, "resample": 3},
    )
    for component, known in KNOWN_IN_2022.items():
        config = _read(folder / component / "config.json")
        _write(folder / component / "config.json", {name: config[name] for name in known.split()})
    config = _read(folder / "safety_checker" / "config.json")
    doubles = {f"{name}_dict": config[name] for name in ("text_config", "vision_config")}
    _write(folder / "safety_checker" / "config.json", {**config, **doubles})
    attention = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    _rename(folder / "vae" / "diffusion_pytorch_model.bin", attention)
    _rename(folder / "safety_checker" / "pytorch_model.bin", {"vision_model.": "vision_model.vision_model."})
    _number(folder / "safety_checker" / "pytorch_model.bin", "vision_model.vision_model.embeddings", 5)
    text_weights, inside = folder / "text_encoder" / "pytorch_model.bin", ""
    if index["text_encoder"][1] == "CLIPTextModel":
        inside = "text_model."
        _rename(text_weights, {part: inside + part for part in ("embeddings.", "encoder.", "final_layer_norm.")})
    length = _read(folder / "text_encoder" / "config.json")["max_position_embeddings"]
    _number(text_weights, f"{inside}embeddings", length)
    return folder


def _files_of_2022(folder: Path, tokenizer: str) -> None:
    """Vocabularies in their own files, with the settings that today's libraries would not guess."""
    if tokenizer == "T5Tokenizer":
        (folder / "tokenizer.json").unlink()
        return
    model, config = _read(folder / "tokenizer.json")["model"], _read(folder / "tokenizer_config.json")
    for file in folder.iterdir():
        file.unlink()
    if tokenizer == "BertTokenizer":
        (folder / "vocab.txt").write_text("\n".join(sorted(model["vocab"], key=model["vocab"].get)), "utf-8")
        names = ["cls", "mask", "pad", "sep", "unk"]
    else:
        _write(folder / "vocab.json", model["vocab"])
        merges = [" ".join(pair) for pair in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
        names = ["bos", "eos", "pad", "unk"]
    tokens = {f"{name}_token": config[f"{name}_token"] for name in names}
    _write(folder / "special_tokens_map.json", tokens)
    common = {"do_lower_case": True, "model_max_length": config["model_max_length"], "tokenizer_class": tokenizer}
    _write(folder / "tokenizer_config.json", {**tokens, **common})


def as_one_file(folder: Path) -> dict[str, torch.Tensor]:
    """UNet and VAE under the names of the original Stable Diffusion, as single files have them."""
    unet, vae = (load_file(folder / name / "diffusion_pytorch_model.safetensors") for name in ("unet", "vae"))
    whole = {}
    for key, value in unet.items():
        whole[f"model.diffusion_model.{_renamed(key, UNET_IN_ONE_FILE)}"] = value
    for key, value in vae.items():
        is_convolution = ".attentions." in key and key.endswith("weight") and "group_norm" not in key
        name = f"first_stage_model.{_renamed(key, VAE_IN_ONE_FILE)}"
        whole[name] = value[:, :, None, None].contiguous() if is_convolution else value
    return whole


Names = dict[str, str | Callable[[re.Match[str]], str]]  # pattern → replacement; the first match counts

RESNET: Names = {
    r"\.norm1\.(?=\w+$)": ".in_layers.0.",
    r"\.conv1\.": ".in_layers.2.",
    r"\.norm2\.(?=\w+$)": ".out_layers.0.",
    r"\.conv2\.": ".out_layers.3.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"\.conv_shortcut\.": ".skip_connection.",
}
UNET_IN_ONE_FILE: Names = {  # with two layers a block, so three places for each
    r"^time_embedding\.linear_(\d)": lambda m: f"time_embed.{(int(m[1]) - 1) * 2}",
    r"^conv_in\.": "input_blocks.0.0.",
    r"^conv_norm_out\.": "out.0.",
    r"^conv_out\.": "out.2.",
    r"^down_blocks\.(\d)\.resnets\.(\d)": lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0",
    r"^down_blocks\.(\d)\.attentions\.(\d)": lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1",
    r"^down_blocks\.(\d)\.downsamplers\.0\.conv": lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op",
    r"^mid_block\.resnets\.(\d)": lambda m: f"middle_block.{2 * int(m[1])}",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^up_blocks\.(\d)\.resnets\.(\d)": lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0",
    r"^up_blocks\.(\d)\.attentions\.(\d)": lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1",
    r"^up_blocks\.0\.upsamplers\.0": "output_blocks.2.1",
    r"^up_blocks\.(\d)\.upsamplers\.0": lambda m: f"output_blocks.{3 * int(m[1]) + 2}.2",
}
VAE_IN_ONE_FILE: Names = {
    r"coder\.down_blocks\.(\d)\.resnets\.": r"coder.down.\1.block.",
    r"coder\.down_blocks\.(\d)\.downsamplers\.0\.": r"coder.down.\1.downsample.",
    r"coder\.up_blocks\.(\d)\.resnets\.": lambda m: f"coder.up.{3 - int(m[1])}.block.",
    r"coder\.up_blocks\.(\d)\.upsamplers\.0\.": lambda m: f"coder.up.{3 - int(m[1])}.upsample.",
    r"mid_block\.resnets\.(\d)": lambda m: f"mid.block_{int(m[1]) + 1}",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"mid_block\.attentions\.0\.to_(\w)": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"conv_norm_out": "norm_out",
}


def _renamed(key: str, names: Names) -> str:
    inside = RESNET if names is UNET_IN_ONE_FILE and ".resnets." in key else {r"\.conv_shortcut\.": ".nin_shortcut."}
    for own in (names, inside):
        found = next((pattern for pattern in own if re.search(pattern, key)), None)
        key = re.sub(found, own[found], key) if found else key
    return key


def _rename(file: Path, names: dict[str, str]) -> None:
    """The first of these in each key."""
    weights = {}
    for key, value in torch.load(file).items():
        now = next((name for name in names if name in key), "")
        weights[key.replace(now, names.get(now, ""), 1)] = value
    torch.save(weights, file)


def _number(file: Path, embeddings: str, positions: int) -> None:
    """Positions were saved with the weights."""
    torch.save({**torch.load(file), f"{embeddings}.position_ids": torch.arange(positions)[None]}, file)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), "utf-8")
