"""Loads the components of a checkpoint, one by one, in a precision: never code of the checkpoint's.

Raises ModelRefused when weights are missing or unsafe. Imports torch and diffusers.
"""

import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub.utils import disable_progress_bars

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import layout, plain_files, sentence

ELSEWHERE = {  # classes that neither library has at its top
    "ChatGLMModel": "diffusers.pipelines.kolors.text_encoder",
    "StableDiffusionSafetyChecker": "diffusers.pipelines.stable_diffusion.safety_checker",
}
WITHOUT_HEAD = {"BertForMaskedLM": "BertModel"}  # the same weights, and a head that is left out
OPTIONS: dict[str, dict[str, Any]] = {"BertModel": {"add_pooling_layer": False}}  # many lack it, and no prompt needs it
# What files have beside a component's weights, and no component takes: positions that are counted now, the poolers,
# heads and projections of text encoders, and the other half of a CLIP.
HARMLESS = re.compile(
    r"(^|\.)position_ids$|(^|\.)pooler\.|^(classifier|cls|lm_head)\.|^text_projection\."
    r"|^logit_scale$|^vision_model\.|^visual_projection\."
)
SEEN_NOWHERE = ("safety_checker", "vae")  # NaN in the first, or in an encoder, shows in no image
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

for library in (transformers, diffusers):  # what they warn about is checked here
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
disable_progress_bars()


def precision(model: Model, device_kind: str, component: str = "") -> str:
    """Of the model, or of one component, on this kind of device: fp32 on a CPU, where fp16 is ten times slower."""
    return model.component_precision.get(component, model.precision) if device_kind == "cuda" else "fp32"


def load_component(model: Model, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """A component on the CPU with all of its weights. Pickles must have been checked before."""
    component_class = _component_class(folder, name)
    safe = layout.weight_files(folder / name)[0].suffix == ".safetensors"
    dtype_option = {"torch_dtype" if issubclass(component_class, diffusers.ModelMixin) else "dtype": dtype}
    options = {**dtype_option, **OPTIONS.get(component_class.__name__, {})}
    with plain_files.view(folder / name) as files:
        component, info = component_class.from_pretrained(
            files, use_safetensors=safe, output_loading_info=True, local_files_only=True, **options
        )
    _check_keys(model, name, info["missing_keys"], info["unexpected_keys"])
    if name in SEEN_NOWHERE:
        _check_numbers(model, name, component)
    return component.eval()


def _check_keys(model: Model, name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse a component that lacks weights, or whose file has weights that its configuration has no place for."""
    if lacks := sorted(missing):
        raise ModelRefused(
            sentence("model_tensors_missing", model=model.name, component=name, count=len(lacks), first=lacks[0])
        )
    if others := sorted(key for key in unexpected if not HARMLESS.search(key)):
        raise ModelRefused(
            sentence("model_tensors_unexpected", model=model.name, component=name, count=len(others), first=others[0])
        )


def _check_numbers(model: Model, name: str, component: torch.nn.Module) -> None:
    for tensor, values in component.state_dict().items():
        if values.isnan().any():
            raise ModelRefused(sentence("model_weights_nan", model=model.name, component=name, tensor=tensor))


def _component_class(folder: Path, name: str) -> Any:
    """The class that the checkpoint declares; `layout` has checked that the family accepts it."""
    declared = str(layout.class_of(folder, name))
    declared = WITHOUT_HEAD.get(declared, declared)
    if declared in ELSEWHERE:
        return getattr(import_module(ELSEWHERE[declared]), declared)
    return getattr(diffusers, declared, None) or getattr(transformers, declared)
