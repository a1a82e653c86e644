"""Puts the components of a checkpoint together: diffusers' pipeline, on a device and in a precision.

Models share components that are equal. Imports torch and diffusers. `worker.checkpoints.loader` loads the components,
`worker.pipelines.stable_diffusion` renders with the result.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

import diffusers
import torch
import transformers

from common.catalog.catalog import Model
from worker.checkpoints import layout, pickles, tokenizer
from worker.checkpoints.loader import DTYPES, load_component, precision
from worker.pipelines.schedulers import Config, scheduler

# Components in memory that several models share; each is freed with the last pipeline that has it. The thread is part
# of the key, for only one thread may use a pipeline.
_shared: WeakValueDictionary[Hashable, torch.nn.Module] = WeakValueDictionary()


def load_pipeline(model: Model, folder: Path, device: torch.device) -> tuple[Any, Config]:
    """The diffusers pipeline, and the config for `scheduler`."""
    pickles.check_pickles(model, folder)
    dtype = DTYPES[precision(model, device.type)]

    def component(name: str) -> Any:
        key = layout.component_id(model, folder, name), dtype, device, get_ident()
        found = _shared.get(key) if layout.is_shareable(folder, name) else None
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


def _feature_extractor(folder: Path) -> Any:
    return transformers.CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)
