"""Converts a model's published files: pickles to safetensors, vocabularies to `tokenizer.json`, one file to components.

Reads pickles without running code. The numbers stay the same, under the names that today's libraries write. Imports
torch, diffusers and transformers.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import kinds, layout, loader, pickles, tokenizer
from worker.models import sentence

CLIP = re.compile(r"cond_stage_model\.(transformer|model)\.")
PLACES = {
    "text_encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
LEFT_BY_TRAINING = re.compile(
    r"\.position_ids$|^first_stage_model\.(loss|model_ema)\.|\.text_projection\.|\.logit_scale$"
)
UNSPLIT = "100GB"  # max_shard_size that no model exceeds


def convert_weights(model: Model, folder: Path, name: str, target: Path) -> None:
    """Write a component of pickles as safetensors, in its own precision."""
    dtype = _dtype(
        tensor
        for file in layout.weight_files(folder / name)
        for tensor in pickles.pickled_tensors(model, file).values()
    )
    component = loader.load_component(model, folder, name, dtype)
    component.save_pretrained(target, max_shard_size=UNSPLIT)


def convert_tokenizer(folder: Path, target: Path) -> None:
    """Write a tokenizer with the `tokenizer.json` that the API counts tokens with, if it can have one."""
    tokenizer.load_tokenizer(folder).save_pretrained(target)


def split_single_file(model: Model, file: Path, like: Model, target: Path) -> None:
    """Write the components of a single file; link those that it lacks to the components of the model `like`.

    diffusers reads no text encoder but CLIP from such a file, so any other is linked too. Raises ModelRefused.
    """
    folder, whole = layout.find(like), target / "whole.safetensors"
    tensors = _read_tensors(model, file)
    has_clip = layout.read_index(folder)["text_encoder"][1] == "CLIPTextModel" and any(map(CLIP.match, tensors))
    names = ["unet", "vae", *(["text_encoder"] if has_clip else [])]
    save_file(tensors, whole, {"format": "pt"})
    try:
        pipe: Any = diffusers.StableDiffusionPipeline.from_single_file(
            str(whole),
            config=str(folder),
            local_files_only=True,
            torch_dtype=_dtype(tensors.values()),
            requires_safety_checker=False,
            **dict.fromkeys({*like.facts.components} - {*names, "scheduler"}),
        )
        for name in names:
            _check_all_taken(model, name, tensors, getattr(pipe, name))
            getattr(pipe, name).save_pretrained(target / name, max_shard_size=UNSPLIT)
    except ModelRefused:
        raise
    except Exception as error:  # foreign weights make the libraries raise anything
        reason = layout.first_line(error)
        raise ModelRefused(
            sentence("source_file_unlike", model=model.name, file=file.name, like=like.name, error=reason)
        ) from error
    finally:
        whole.unlink()
    for name in {*layout.components(model)} - {*names}:
        (target / name).symlink_to((folder / name).resolve())
    (target / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())


def _read_tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a single file, whatever its name says that it is."""
    if not kinds.is_safetensors(file):
        return pickles.tensors_of(model, file)
    layout.check_not_truncated(model, file)
    tensors = load_file(file)
    kinds.check_keys(model, file.name, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    return tensors


def _check_all_taken(model: Model, name: str, tensors: Mapping[str, torch.Tensor], component: torch.nn.Module) -> None:
    """Refuse a component with fewer weights than the file has for it: diffusers says nothing about the others."""
    found = [key for key in tensors if key.startswith(PLACES[name]) and not LEFT_BY_TRAINING.search(key)]
    taken = len(component.state_dict())
    if len(found) > taken:
        raise ModelRefused(
            sentence("source_weights_unexpected", model=model.name, component=name, count=len(found) - taken)
        )


def _dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The dtype of all floating-point tensors; fp32 if they differ."""
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32
