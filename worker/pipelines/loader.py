"""Builds a diffusers pipeline from the files of a checkpoint, on a device and in a precision.

Loads component by component, never code of the checkpoint's; raises ModelRefused when weights are missing or unsafe.
Imports torch and diffusers. `worker.pipelines.stable_diffusion` renders with the result.
"""

import json
import pickle
import zipfile
from collections.abc import Hashable
from pathlib import Path
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub.utils import disable_progress_bars

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.pipelines import checkpoint, sentence, tokenizer

Config = dict[str, Any]
TEXT_ENCODERS = ("BertModel", "CLIPTextModel")
CLASSES = {
    "safety_checker": StableDiffusionSafetyChecker,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}
SEEN_NOWHERE = ("safety_checker", "vae")  # NaN in the first, or in an encoder, shows in no image
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MOST_SHARED = 4  # bytes of tensors for each byte of their file; tensors may share their storage

# steps_offset, skip_prk_steps: what Stable Diffusion was trained with; checkpoints of 2022 leave them out.
# clip_sample: latents are not pixels; clipping them ruins the image.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}

# Components in memory that several models share; each is freed with the last pipeline that has it. The thread is part
# of the key, for only one thread may use a pipeline.
_shared: WeakValueDictionary[Hashable, torch.nn.Module] = WeakValueDictionary()

for library in (transformers, diffusers):  # what they warn about is checked here
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
disable_progress_bars()


def load_pipeline(model: Model, folder: Path, device: torch.device) -> tuple[Any, Config]:
    """The diffusers pipeline, and the config for `scheduler`."""
    _check_pickles(model, folder)
    dtype = DTYPES[precision(model, device.type)]

    def component(name: str) -> Any:
        key = checkpoint.component_id(model, folder, name), dtype, device, get_ident()
        found = _shared.get(key) if checkpoint.is_shareable(folder, name) else None
        if found is None:
            found = _shared[key] = load_component(model, folder, name, dtype).to(device)
        return found

    text_encoder = component("text_encoder")
    safety_checker = component("safety_checker") if model.safety_checker else None
    config: Config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=component("vae"),
        text_encoder=text_encoder,
        tokenizer=tokenizer.load_for(model, folder / "tokenizer", text_encoder),
        unet=component("unet"),
        scheduler=scheduler("ddim", config),
        safety_checker=safety_checker,
        feature_extractor=_feature_extractor(folder) if safety_checker else None,
        requires_safety_checker=model.safety_checker,
    )
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if model.compile:
        pipe.unet.compile()
    return pipe, config


def check(model: Model, folder: Path) -> None:
    """Load each component alone and check it as `load_pipeline` does. Needs the memory of the largest one."""
    _check_pickles(model, folder)
    for name in checkpoint.components_with_weights(model):
        component = load_component(model, folder, name, torch.float32)
        if name == "text_encoder":
            tokenizer.load_for(model, folder / "tokenizer", component)


def precision(model: Model, device_kind: str) -> str:
    """The precision of the model on this kind of device: fp32 on a CPU, where fp16 is ten times slower."""
    return model.precision if device_kind == "cuda" else "fp32"


def scheduler(name: str, config: Config) -> Any:
    """A new scheduler. Each call needs its own: schedulers keep state."""
    scheduler_class, settings = SCHEDULERS[name]
    return scheduler_class.from_config({"set_alpha_to_one": False, **config}, **settings)


def scheduler_name(class_name: str | None) -> str:
    """The catalogue's name for a scheduler class of diffusers; `ddim` for any other class."""
    return next((name for name, (known, _) in SCHEDULERS.items() if known.__name__ == class_name), "ddim")


def load_component(model: Model, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """A component on the CPU with all of its weights. Pickles must have been checked before."""
    component_class = _component_class(model, folder, name)
    safe = checkpoint.weight_files(folder / name)[0].suffix == ".safetensors"
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


# Pickles


def pickled_tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle; empty for safetensors. Raises ModelRefused if a pickle has anything else."""
    return {} if file.suffix == ".safetensors" else require_tensors(model, file, unpickle(model, file))


def unpickle(model: Model, file: Path) -> Any:
    """Read a pickle without running its code. Raises ModelRefused."""
    path = _relative(file)
    try:
        if zipfile.is_zipfile(file):
            _check_zip(model, file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except ModelRefused:
        raise
    except pickle.UnpicklingError as error:
        raise ModelRefused(sentence("model_pickle_unsafe", model=model.name, file=path)) from error
    except Exception as error:  # a broken pickle makes the reader raise anything
        reason = checkpoint.first_line(error)
        raise ModelRefused(sentence("model_file_damaged", model=model.name, file=path, error=reason)) from error


def require_tensors(model: Model, file: Path, content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelRefused(sentence("model_pickle_not_tensors", model=model.name, file=_relative(file)))
    size, declared = file.stat().st_size, sum(tensor.nbytes for tensor in content.values())
    if declared > MOST_SHARED * size:
        raise _inflates(model, file, declared)
    return content


def _check_pickles(model: Model, folder: Path) -> None:
    for name in checkpoint.components_with_weights(model):
        for file in checkpoint.weight_files(folder / name):
            pickled_tensors(model, file)


def _check_zip(model: Model, file: Path) -> None:
    """Check by its directory, before anything is inflated, that it has one pickle and takes no more than its size.

    All readers then find the same pickle; TorchScript has several, and code. torch.save compresses nothing.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if len([member for member in members if member.filename.endswith((".pkl", ".py"))]) != 1:
        raise pickle.UnpicklingError
    if (declared := sum(member.file_size for member in members)) > file.stat().st_size:
        raise _inflates(model, file, declared)


def _inflates(model: Model, file: Path, declared: int) -> ModelRefused:
    size = file.stat().st_size
    return ModelRefused(
        sentence("model_file_inflates", model=model.name, file=_relative(file), bytes=size, declared=declared)
    )


def _relative(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _component_class(model: Model, folder: Path, name: str) -> Any:
    if name != "text_encoder":
        return CLASSES[name]
    found = checkpoint.read_index(folder)["text_encoder"][1]
    if found not in TEXT_ENCODERS:
        known = ", ".join(TEXT_ENCODERS)
        raise ModelRefused(sentence("model_text_encoder_unknown", model=model.name, text_encoder=found, known=known))
    return getattr(transformers, found)


def _feature_extractor(folder: Path) -> Any:
    return transformers.CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)
