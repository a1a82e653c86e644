"""Loads the LoRAs of a request into a pipeline, and unloads them before requests with others.

A file is checked before it is loaded: plain tensors, with the catalogue's sha256. Weights for a text encoder that
cannot take them (all but CLIPTextModel) are left out; diffusers would raise with half of the LoRA active. After any
failure no LoRA is active. The pipeline's own weights never change, so without a LoRA its images stay the same to the
bit. Imports torch.
"""

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from common.catalog.catalog import Model
from common.catalog.loras import Lora, LoraUse
from common.errors import LoraRefused
from worker.checkpoints.layout import LORA_CLASSES, first_line
from worker.pipelines import sentence

TEXT_ENCODER_PREFIXES = ("lora_te", "text_encoder")  # of weight names, in kohya's format and in diffusers'


class LoraAdapters:
    """The active LoRAs of one pipeline."""

    def __init__(self, model: Model, pipe: Any) -> None:
        self._model = model
        self._pipe = pipe
        self._active: tuple[LoraUse, ...] = ()
        self._verified: dict[Path, tuple[int, int]] = {}  # size and modification time when the sha256 matched

    def activate(self, uses: tuple[LoraUse, ...]) -> None:
        """Make these LoRAs active, and no others. Raises LoraRefused, or RuntimeError when memory runs out."""
        if uses == self._active:
            return
        self.deactivate()
        names = [f"lora{index}" for index in range(len(uses))]  # torch allows no dots
        try:
            for name, use in zip(names, uses, strict=True):
                self._load(name, use.name)
            if uses:
                self._pipe.set_adapters(names, [use.weight for use in uses])
                for component in (getattr(self._pipe, self._model.facts.denoiser), self._pipe.text_encoder):
                    component.to(component.dtype)
        except BaseException:
            self._pipe.unload_lora_weights()
            raise
        self._active = uses

    def deactivate(self) -> None:
        if self._active:
            self._pipe.unload_lora_weights()
            self._active = ()

    def _load(self, adapter: str, name: str) -> None:
        lora, model = self._model.loras.get(name), self._model.name
        if lora is None:
            raise LoraRefused(sentence("lora_unknown", lora=name, model=model))
        weights = self._read(lora, self._verified_file(lora))
        try:
            self._pipe.load_lora_weights(weights, adapter_name=adapter)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # of another kind of model
            raise LoraRefused(sentence("lora_mismatch", lora=name, model=model, error=first_line(error))) from error
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise LoraRefused(sentence("lora_sizes_mismatch", lora=name, model=model)) from error

    def _read(self, lora: Lora, file: Path) -> dict[str, Any]:
        try:
            weights = load_file(file)
        except Exception as error:
            reason = first_line(error)
            raise LoraRefused(sentence("lora_not_tensors", lora=lora.name, file=file.name, error=reason)) from error
        if type(self._pipe.text_encoder).__name__ not in LORA_CLASSES:
            weights = {name: weight for name, weight in weights.items() if not name.startswith(TEXT_ENCODER_PREFIXES)}
        if not weights:
            raise LoraRefused(sentence("lora_without_weights", lora=lora.name, model=self._model.name))
        return weights

    def _verified_file(self, lora: Lora) -> Path:
        file = _locate(lora)
        try:
            state = file.stat().st_size, file.stat().st_mtime_ns
            if self._verified.get(file) != state:
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != lora.sha256:
                        raise LoraRefused(sentence("lora_file_changed", lora=lora.name, file=file.name))
                self._verified[file] = state
        except OSError as error:
            raise LoraRefused(sentence("lora_file_missing", lora=lora.name, file=file)) from error
        return file


def _locate(lora: Lora) -> Path:
    """The LoRA's file; downloaded if it is on the hub."""
    if lora.path is None:
        try:
            return Path(hf_hub_download(lora.source, str(lora.file), revision=lora.revision))
        except Exception as error:
            reason = first_line(error)
            raise LoraRefused(
                sentence("lora_not_downloaded", lora=lora.name, source=lora.source, error=reason)
            ) from error
    if not lora.path.is_dir():
        return lora.path
    if lora.file:
        return lora.path / lora.file
    files = sorted(lora.path.glob("*.safetensors"))
    if len(files) != 1:
        raise LoraRefused(sentence("lora_file_ambiguous", lora=lora.name, folder=lora.path, count=len(files)))
    return files[0]
