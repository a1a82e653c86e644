"""What an import makes of files as they were published: weights as safetensors, `tokenizer.json`, one file as parts.

Reads pickles without running code, and writes what today's libraries would: the same numbers, under today's names.
Imports torch, diffusers and transformers, so import it late.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

from common.catalog.catalog import Model
from worker.pipelines import checkpoint, loader, tokenizer

PLAIN = (bool, float, int, str, type(None))
CLIP = re.compile(r"cond_stage_model\.(transformer|model)\.")
ONE_FILE = "100GB"  # it is not split


def as_safetensors(model: Model, folder: Path, name: str, target: Path) -> None:
    """Write the part of this name anew, in the precision that it is in."""
    dtype = _dtype(
        tensor for file in checkpoint.weights(folder / name) for tensor in loader.plain_tensors(model, file).values()
    )
    part = loader.load_component(model, folder, name, dtype)
    part.save_pretrained(target, max_shard_size=ONE_FILE)


def with_json(folder: Path, target: Path) -> None:
    """Write the tokenizer of a vocabulary anew, with the `tokenizer.json` that the API counts with."""
    tokenizer.load_tokenizer(folder).save_pretrained(target)


def split_single_file(model: Model, file: Path, like: Model, target: Path) -> None:
    """Write the parts that one file holds; those that it does not are the other model's, as links.

    Of text encoders diffusers reads CLIP from such a file, so any other is the other model's too.
    """
    folder, whole = checkpoint.find(like), target / "whole.safetensors"
    tensors = _tensors(model, file)
    has_clip = checkpoint.index(folder)["text_encoder"][1] == "CLIPTextModel" and any(map(CLIP.match, tensors))
    names = ["unet", "vae", *(["text_encoder"] if has_clip else [])]
    save_file(tensors, whole, {"format": "pt"})
    try:
        pipe: Any = diffusers.StableDiffusionPipeline.from_single_file(
            str(whole),
            config=str(folder),
            local_files_only=True,
            torch_dtype=_dtype(tensors.values()),
            requires_safety_checker=False,
            **dict.fromkeys({*checkpoint.COMPONENTS, *checkpoint.CHECKER} - {*names, "scheduler"}),
        )
        for name in names:
            getattr(pipe, name).save_pretrained(target / name, max_shard_size=ONE_FILE)
    except Exception as error:  # whatever foreign weights make of the libraries
        raise checkpoint.refused(
            model, f"{file.name} is no Stable Diffusion like {like.name} ({checkpoint.first_line(error)})"
        ) from error
    finally:
        whole.unlink()
    for name in {*checkpoint.components(model)} - {*names}:
        (target / name).symlink_to((folder / name).resolve())
    (target / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())


def _tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """All of a file; where training left more than the weights beside them, only if it is numbers and words."""
    if file.suffix == ".safetensors":
        checkpoint.check_not_truncated(model, file)
        return load_file(file)
    content = loader.unpickled(model, file)
    if isinstance(content, dict) and "state_dict" in content:
        if not all(isinstance(value, PLAIN) for key, value in content.items() if key != "state_dict"):
            raise checkpoint.refused(model, f"{file.name} is no pickle of plain tensors")
        content = content["state_dict"]
    tensors = loader.only_tensors(model, file, content)
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """What all numbers are in; fp32 where they are in several."""
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32
