"""The file of a LoRA: found or downloaded, with the catalogue's sha256, and plain tensors. Knows no model."""

import hashlib
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open

from common.catalog.loras import Lora
from common.errors import LoraOutOfReach, LoraRefused
from worker.checkpoints.layout import first_line
from worker.loras import sentence

ADAPTER_METADATA = "lora_adapter_metadata"  # of a file's header: PEFT's settings as JSON, written by diffusers


class LoraFiles:
    """Remembers which files had the catalogue's sha256: hashing one takes longer than reading it."""

    def __init__(self) -> None:
        self._verified: dict[Path, tuple[int, int]] = {}  # size and modification time when the sha256 matched

    def read(self, lora: Lora) -> tuple[dict[str, torch.Tensor], str | None]:
        """The tensors by their names, and PEFT's settings if the file has them. Raises LoraRefused."""
        file = self._verified_file(lora)
        try:
            with safe_open(file, framework="pt") as content:
                return {name: content.get_tensor(name) for name in content.keys()}, (  # noqa: SIM118
                    content.metadata() or {}
                ).get(ADAPTER_METADATA)
        except Exception as error:
            reason = first_line(error)
            raise LoraRefused(sentence("lora_not_tensors", lora=lora.name, file=file.name, error=reason)) from error

    def _verified_file(self, lora: Lora) -> Path:
        file = _locate(lora)
        try:
            state = file.stat().st_size, file.stat().st_mtime_ns
            if self._verified.get(file) != state:
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != lora.sha256:
                        raise LoraOutOfReach(sentence("lora_file_changed", lora=lora.name, file=file.name))
                self._verified[file] = state
        except OSError as error:
            raise LoraOutOfReach(sentence("lora_file_missing", lora=lora.name, file=file)) from error
        return file


def _locate(lora: Lora) -> Path:
    """The LoRA's file; downloaded if it is on the hub."""
    if lora.path is None:
        try:
            return Path(hf_hub_download(lora.source, str(lora.file), revision=lora.revision))
        except Exception as error:
            reason = first_line(error)
            raise LoraOutOfReach(
                sentence("lora_not_downloaded", lora=lora.name, source=lora.source, error=reason)
            ) from error
    if not lora.path.is_dir():
        return lora.path
    if lora.file:
        return lora.path / lora.file
    files = sorted(lora.path.glob("*.safetensors"))
    if len(files) != 1:
        raise LoraOutOfReach(sentence("lora_file_ambiguous", lora=lora.name, folder=lora.path, count=len(files)))
    return files[0]
