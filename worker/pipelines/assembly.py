"""Puts the components of a checkpoint together: diffusers' pipeline, on a device and in a precision.

Models share components that are equal. Imports torch and diffusers. `worker.checkpoints.loader` loads the components,
`worker.pipelines.families` knows what each family makes of them.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

import torch
import transformers

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import checkers, layout, pickles, plain_files
from worker.checkpoints.loader import DTYPES, load_component, precision
from worker.checkpoints.text_files import read_object
from worker.pipelines import placement, sentence
from worker.pipelines.families.base import BaseFamily
from worker.pipelines.safety_checker import Checker, judge
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
    pipe, config = _assemble(model, folder, lambda name: _component(model, folder, name, device))
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, model.facts.denoiser)
    if device.type == "cuda" and model.facts.denoiser == "unet":
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if model.compile:
        denoiser.compile()
    return pipe, config


def load_checker(model: Model, device: torch.device) -> Checker | None:
    """The farm's checker that judges the model's images; None if its own does, or none. Raises ModelRefused."""
    folder = checkers.find(model)
    if folder is None or model.checker is None:
        return None
    with checkers.refusing(model):
        extractor = _feature_extractor(folder / "feature_extractor")
        judging = replace(model.checker, offload=model.offload)
        return Checker(_component(judging, folder, "safety_checker", device), extractor)


def _component(model: Model, folder: Path, name: str, device: torch.device) -> torch.nn.Module:
    dtype = DTYPES[precision(model, device.type, name)]
    key = layout.component_id(model, folder, name), dtype, device, model.offload, get_ident()
    found = _shared.get(key) if layout.is_shareable(model, folder, name) else None
    if found is None:
        place = placement.HOST if model.offload else device
        found = _shared[key] = load_component(model, folder, name, dtype).to(place)
    return found


def check_checker(model: Model) -> None:
    """Load the farm's checker that judges the model's images, if there is one, and let it judge a grey image."""
    if checker := load_checker(model, torch.device("cpu")):
        (verdict,) = judge(checker, torch.full((1, 64, 64, 3), 128, dtype=torch.uint8))
        if verdict.unchecked and model.checker:
            with checkers.refusing(model):
                raise ModelRefused(sentence("checker_gives_nan", model=model.checker.name))


def check(model: Model, folder: Path) -> None:
    """Load each component alone, and check it as for a worker. Needs the memory of the largest one."""
    pickles.check_pickles(model, folder)
    check_checker(model)

    def component(name: str) -> Any:
        return load_component(model, folder, name, torch.float32).to("meta")

    _assemble(model, folder, component)


def _assemble(model: Model, folder: Path, load: Callable[[str], Any]) -> tuple[Any, Config]:
    family, index = family_of(model), layout.read_index(folder)
    parts: dict[str, Any] = {name: load(name) for name in layout.components_with_weights(model)}
    config: Config = read_object(folder / "scheduler" / "scheduler_config.json")
    for name in layout.components(model):
        if name.startswith("tokenizer"):
            parts[name] = family.load_tokenizer(model, folder / name, parts)
        elif name == "feature_extractor":
            parts[name] = _feature_extractor(folder / name)
    parts["scheduler"] = scheduler(model.facts.schedulers[0], config)
    return family.assemble(model, parts, index), config


def _feature_extractor(folder: Path) -> Any:
    with plain_files.view(folder) as files:
        return transformers.CLIPImageProcessorPil.from_pretrained(files, local_files_only=True)
