"""LoRAs put on a resident pipeline and taken off again: the one that is on is on for its own strokes only.

A file is looked at before it is loaded: plain tensors, with the catalogue's sha256. What it has for a text encoder that
cannot take it (all but CLIPTextModel) is left out; diffusers would raise, with half of it active. Whatever fails,
nothing stays on. Weights of the pipeline itself are never touched, so without a LoRA it paints what it did, to the bit.
Imports torch by way of safetensors, so import it late.
"""

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from common.catalog.catalog import Model
from common.catalog.loras import Lora, LoraUse
from common.errors import LoraRefused
from worker.pipelines.checkpoint import TAKE_LORAS, first_line

OF_TEXT_ENCODERS = ("lora_te", "text_encoder")  # how the names of their weights begin, in kohya's files and diffusers'


class LoraAdapters:
    """Those that a pipeline has on."""

    def __init__(self, model: Model, pipe: Any) -> None:
        self._model = model
        self._pipe = pipe
        self._on: tuple[LoraUse, ...] = ()
        self._looked_at: dict[Path, tuple[int, int]] = {}  # with its size and time then

    def put_on(self, uses: tuple[LoraUse, ...]) -> None:
        """These and no others. Raises LoraRefused, or what the device raises when it has no memory left."""
        if uses == self._on:
            return
        self.take_off()
        names = [f"lora{place}" for place in range(len(uses))]  # torch allows no dots
        try:
            for name, use in zip(names, uses, strict=True):
                self._load(name, use.name)
            if uses:
                self._pipe.set_adapters(names, [use.weight for use in uses])
                for part in (self._pipe.unet, self._pipe.text_encoder):
                    part.to(part.dtype)
        except BaseException:
            self._pipe.unload_lora_weights()
            raise
        self._on = uses

    def take_off(self) -> None:
        if self._on:
            self._pipe.unload_lora_weights()
            self._on = ()

    def _load(self, adapter: str, name: str) -> None:
        lora = self._model.loras.get(name)
        if lora is None:
            raise LoraRefused(f"The catalogue of this worker has no LoRA {name} for {self._model.name}.")
        file = self._found(lora)
        try:
            self._pipe.load_lora_weights(self._weights(lora, file), adapter_name=adapter)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # what a foreign file leads to
            raise refused(lora, f"it does not fit {self._model.name} ({first_line(error)})") from error
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise refused(lora, f"it does not fit {self._model.name} (its weights have other sizes)") from error

    def _weights(self, lora: Lora, file: Path) -> dict[str, Any]:
        try:
            weights = load_file(file)
        except Exception as error:
            raise refused(lora, f"{file.name} is no file of plain tensors ({first_line(error)})") from error
        if type(self._pipe.text_encoder).__name__ not in TAKE_LORAS:
            weights = {name: weight for name, weight in weights.items() if not name.startswith(OF_TEXT_ENCODERS)}
        if not weights:
            raise refused(lora, f"it holds nothing that {self._model.name} could take")
        return weights

    def _found(self, lora: Lora) -> Path:
        file = _file(lora)
        try:
            seen = file.stat().st_size, file.stat().st_mtime_ns
            if self._looked_at.get(file) != seen:
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != lora.sha256:
                        raise refused(lora, f"the sha256 of {file.name} is not the catalogue's")
                self._looked_at[file] = seen
        except OSError as error:
            raise refused(lora, f"there is no file {file}") from error
        return file


def refused(lora: Lora, reason: str) -> LoraRefused:
    return LoraRefused(f"The LoRA {lora.name} is refused: {reason}.")


def _file(lora: Lora) -> Path:
    if lora.path is None:
        try:
            return Path(hf_hub_download(lora.source, str(lora.file), revision=lora.revision))
        except Exception as error:
            raise refused(lora, f"{lora.source} cannot be fetched from the hub ({first_line(error)})") from error
    if not lora.path.is_dir():
        return lora.path
    if lora.file:
        return lora.path / lora.file
    files = sorted(lora.path.glob("*.safetensors"))
    if len(files) != 1:
        raise refused(lora, f"{lora.path} has {len(files)} .safetensors files; name one as `file`")
    return files[0]
