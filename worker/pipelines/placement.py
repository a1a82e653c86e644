"""Where the components of a model are: on the device for good, or, with `offload`, only while their stage needs them.

The stages of a call follow each other: the text encoders, the denoiser, then the VAE and the safety checker. So a model
with `offload` takes as much of the device as its largest stage; each call moves it there and back. Imports no torch.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from common.catalog.catalog import Model

HOST = "cpu"
ENCODE, DENOISE, DECODE = "encode", "denoise", "decode"
DECODERS = ("vae", "safety_checker")


class Placement:
    def __init__(self, model: Model, components: Mapping[str, Any], device: Any) -> None:
        """`components` by name, those with weights; each is at HOST if the model has `offload`."""
        self._model, self._components, self._device = model, components, device
        self.is_by_stage = model.offload and str(device) != HOST

    @contextmanager
    def using(self, stage: str, *names: str) -> Iterator[None]:
        """The stage's components, or only those of the names, are on the device during the block."""
        needed = names or needed_by(self._model, stage, self._components)
        parts = [self._components[name] for name in needed if self.is_by_stage]
        try:
            for part in parts:
                part.to(self._device)
            yield
        finally:
            for part in parts:
                part.to(HOST)


def needed_by(model: Model, stage: str, components: Iterable[str]) -> list[str]:
    """Which of the components, by name, are in use in the stage."""
    facts = model.facts
    in_stage = {
        ENCODE: {*components} - {facts.denoiser, *DECODERS},
        DENOISE: {facts.denoiser, *facts.call_needs},
        DECODE: {*DECODERS},
    }[stage]
    return [name for name in components if name in in_stage]


def largest_stage(model: Model, sizes: Mapping[str, int]) -> dict[Hashable, int]:
    """The bytes of the device that a model with `offload` takes, of the bytes of its components by name."""
    stages = [sum(sizes[name] for name in needed_by(model, stage, sizes)) for stage in (ENCODE, DENOISE, DECODE)]
    return {(model.name, "the largest stage"): max(stages)}
