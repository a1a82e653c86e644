"""Puts the components of a checkpoint together: diffusers' pipeline, on a device and in a precision.

Models share components that are equal. Imports torch and diffusers. `worker.checkpoints.loader` loads the components,
`worker.pipelines.families` knows what each family makes of them.
"""

import json
from collections.abc import Callable, Hashable
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

import torch
import transformers

from common.catalog.catalog import Model
from worker.checkpoints import layout, pickles
from worker.checkpoints.loader import DTYPES, load_component, precision
from worker.pipelines.families.base import BaseFamily
from worker.pipelines.schedulers import Config, scheduler

# Components in memory that several models share; each is freed with the last pipeline that has it. The thread is part
# of the key, for only one thread may use a pipeline.
_shared: WeakValueDictionary[Hashable, torch.nn.Module] = WeakValueDictionary()


def family_of(model: Model) -> BaseFamily:
    """The code of the model's family."""
    family: BaseFamily = import_module(f"worker.pipelines.families.{model.facts.code}").Family()
    return family


def load_pipeline(model: Model, folder: Path, device: torch.device) -> tuple[Any, Config]:
    """The diffusers pipeline, and the config for `scheduler`. Raises ModelRefused."""
    pickles.check_pickles(model, folder)

    def component(name: str) -> torch.nn.Module:
        dtype = DTYPES[precision(model, device.type, name)]
        key = layout.component_id(model, folder, name), dtype, device, get_ident()
        found = _shared.get(key) if layout.is_shareable(model, folder, name) else None
        if found is None:
            found = _shared[key] = load_component(model, folder, name, dtype).to(device)
        return found

    pipe, config = _assemble(model, folder, component)
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, model.facts.denoiser)
    if device.type == "cuda" and model.facts.denoiser == "unet":
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if model.compile:
        denoiser.compile()
    return pipe, config


def check(model: Model, folder: Path) -> None:
    """Load each component alone, and check it as for a worker. Needs the memory of the largest one."""
    pickles.check_pickles(model, folder)

    def component(name: str) -> Any:
        return load_component(model, folder, name, torch.float32).to("meta")

    _assemble(model, folder, component)


def _assemble(model: Model, folder: Path, load: Callable[[str], Any]) -> tuple[Any, Config]:
    family, index = family_of(model), layout.read_index(folder)
    parts: dict[str, Any] = {name: load(name) for name in layout.components_with_weights(model)}
    config: Config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    for name in layout.components(model):
        if name.startswith("tokenizer"):
            parts[name] = family.load_tokenizer(model, folder / name, parts)
        elif name == "feature_extractor":
            parts[name] = transformers.CLIPImageProcessorPil.from_pretrained(folder / name, local_files_only=True)
    parts["scheduler"] = scheduler(model.facts.schedulers[0], config)
    return family.assemble(model, parts, index), config
