"""Loading: the files of a checkpoint put together to a diffusers pipeline on its device, in the precision it paints in.

Part by part and never with code of its own; refused in one sentence when anything of it is missing. Imports torch and
diffusers, as `worker.pipelines.stable_diffusion` does, which paints with what is put together here.
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
from huggingface_hub.utils.tqdm import disable_progress_bars

from common.catalog.catalog import Model
from worker.pipelines import checkpoint
from worker.pipelines.tokenizer import _tokenizer

Config = dict[str, Any]
TEXT_ENCODERS = ("BertModel", "CLIPTextModel")
KINDS = {
    "safety_checker": StableDiffusionSafetyChecker,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# steps_offset, skip_prk_steps: what Stable Diffusion was trained for; 2022 checkpoints leave them out of their files.
# clip_sample: latents are not pixels; clipping them ruins the picture.
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

# What is in memory now, and is one for all models that have it: whichever of them is closed last gives it back. Of each
# thread its own, for a pipeline belongs to one.
_resident: WeakValueDictionary[Hashable, torch.nn.Module] = WeakValueDictionary()

for library in (transformers, diffusers):  # what they warn of is checked here, and refused in words of our own
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
disable_progress_bars()


def load_pipeline(model: Model, folder: Path, device: torch.device) -> tuple[Any, Config]:
    """The pipeline, and the settings that its schedulers are made from."""
    for name in checkpoint.components_with_weights(model):
        for file in checkpoint.weights(folder / name):
            plain_tensors(model, file)
    dtype = PRECISIONS[precision(model, device.type)]

    def part(name: str) -> Any:
        key = checkpoint.component_id(model, folder, name), dtype, device, get_ident()
        found = _resident.get(key) if checkpoint.is_shared(folder, name) else None
        if found is None:
            found = _resident[key] = load_component(model, folder, name, dtype).to(device)
        return found

    text_encoder = part("text_encoder")
    checker = part("safety_checker") if model.safety_checker else None
    config: Config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=part("vae"),
        text_encoder=text_encoder,
        tokenizer=_tokenizer(model, folder / "tokenizer", text_encoder),
        unet=part("unet"),
        scheduler=scheduler("ddim", config),
        safety_checker=checker,
        feature_extractor=_feature_extractor(folder) if checker else None,
        requires_safety_checker=model.safety_checker,
    )
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if model.compile:
        pipe.unet.compile()
    return pipe, config


def precision(model: Model, device_kind: str) -> str:
    """What the model is painted in there: half precision on a CPU would be ten times slower."""
    return model.precision if device_kind == "cuda" else "fp32"


def scheduler(name: str, config: Config) -> Any:
    """A new one for every call: schedulers remember."""
    kind, settings = SCHEDULERS[name]
    return kind.from_config({"set_alpha_to_one": False, **config}, **settings)


def scheduler_named(kind: str | None) -> str:
    """Our name for a class of schedulers; that of DDIM, which suits all, for one that we do not have."""
    return next((name for name, (known, _) in SCHEDULERS.items() if known.__name__ == kind), "ddim")


def check(model: Model, folder: Path) -> None:
    """All that a load checks, part by part: takes the memory of the largest only."""
    for name in checkpoint.components_with_weights(model):
        for file in checkpoint.weights(folder / name):
            plain_tensors(model, file)
        part = load_component(model, folder, name, torch.float32)
        if name == "text_encoder":
            _tokenizer(model, folder / "tokenizer", part)


def load_component(model: Model, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """A part on the CPU, with none of its weights missing. Its pickles must be known to hold plain tensors."""
    kind = _kind(model, folder, name)
    safe = checkpoint.weights(folder / name)[0].suffix == ".safetensors"
    precision = {"torch_dtype" if issubclass(kind, diffusers.ModelMixin) else "dtype": dtype}
    part, info = kind.from_pretrained(
        folder / name, use_safetensors=safe, output_loading_info=True, local_files_only=True, **precision
    )
    if missing := sorted(info["missing_keys"]):
        raise checkpoint.refused(model, f"its {name} lacks {len(missing)} weights, {missing[0]} among them")
    return part.eval()


def plain_tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """What a pickle holds, if that is nothing but tensors; of safetensors nothing, for they hold nothing else."""
    return {} if file.suffix == ".safetensors" else only_tensors(model, file, unpickled(model, file))


def unpickled(model: Model, file: Path) -> Any:
    """A pickle can run code. With `weights_only` it cannot."""
    where = _where(file)
    try:
        if zipfile.is_zipfile(file) and not _has_one_pickle(file):
            raise pickle.UnpicklingError
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise checkpoint.refused(model, f"{where} is no pickle of plain tensors: it could run code") from error
    except Exception as error:  # whatever a broken pickle makes of the reader
        raise checkpoint.refused(model, f"{where} is damaged or cut short ({checkpoint.first_line(error)})") from error


def _has_one_pickle(file: Path) -> bool:
    """A second one may be what another reader takes; TorchScript has several, and code."""
    with zipfile.ZipFile(file) as archive:
        return len([name for name in archive.namelist() if name.endswith((".pkl", ".py"))]) == 1


def only_tensors(model: Model, file: Path, content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise checkpoint.refused(model, f"{_where(file)} is no pickle of plain tensors")
    return content


def _where(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _kind(model: Model, folder: Path, name: str) -> Any:
    if name != "text_encoder":
        return KINDS[name]
    kind = checkpoint.index(folder)["text_encoder"][1]
    if kind not in TEXT_ENCODERS:
        raise checkpoint.refused(model, f"its text encoder is a {kind}, not one of {', '.join(TEXT_ENCODERS)}")
    return getattr(transformers, kind)


def _feature_extractor(folder: Path) -> Any:
    return transformers.CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)
