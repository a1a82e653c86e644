"""Loads the components of a checkpoint, one by one, in a precision: never code of the checkpoint's.

Raises ModelRefused when weights are missing or unsafe. Imports torch and diffusers.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub.utils import disable_progress_bars

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import layout, pickles, sentence, tokenizer

TEXT_ENCODERS = ("BertModel", "CLIPTextModel")
CLASSES = {
    "safety_checker": StableDiffusionSafetyChecker,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}
SEEN_NOWHERE = ("safety_checker", "vae")  # NaN in the first, or in an encoder, shows in no image
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

for library in (transformers, diffusers):  # what they warn about is checked here
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
disable_progress_bars()


def check(model: Model, folder: Path) -> None:
    """Load each component alone, and check it as for a worker. Needs the memory of the largest one."""
    pickles.check_pickles(model, folder)
    for name in layout.components_with_weights(model):
        component = load_component(model, folder, name, torch.float32)
        if name == "text_encoder":
            tokenizer.load_for(model, folder / "tokenizer", component)


def precision(model: Model, device_kind: str) -> str:
    """The precision of the model on this kind of device: fp32 on a CPU, where fp16 is ten times slower."""
    return model.precision if device_kind == "cuda" else "fp32"


def load_component(model: Model, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """A component on the CPU with all of its weights. Pickles must have been checked before."""
    component_class = _component_class(model, folder, name)
    safe = layout.weight_files(folder / name)[0].suffix == ".safetensors"
    dtype_option = {"torch_dtype" if issubclass(component_class, diffusers.ModelMixin) else "dtype": dtype}
    component, info = component_class.from_pretrained(
        folder / name, use_safetensors=safe, output_loading_info=True, local_files_only=True, **dtype_option
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelRefused(
            sentence("model_tensors_missing", model=model.name, component=name, count=len(missing), first=missing[0])
        )
    if name in SEEN_NOWHERE:
        _check_numbers(model, name, component)
    return component.eval()


def _check_numbers(model: Model, name: str, component: torch.nn.Module) -> None:
    for tensor, values in component.state_dict().items():
        if values.isnan().any():
            raise ModelRefused(sentence("model_weights_nan", model=model.name, component=name, tensor=tensor))


def _component_class(model: Model, folder: Path, name: str) -> Any:
    if name != "text_encoder":
        return CLASSES[name]
    found = layout.read_index(folder)["text_encoder"][1]
    if found not in TEXT_ENCODERS:
        known = ", ".join(TEXT_ENCODERS)
        raise ModelRefused(sentence("model_text_encoder_unknown", model=model.name, text_encoder=found, known=known))
    return getattr(transformers, found)
