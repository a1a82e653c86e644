"""Writes the trained components as one checkpoint in Taiyi's layout, for `from_pretrained` and the farm."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from training import checker, networks
from training.tokens import tokenizer


def export(components: dict[str, Any], out: Path) -> None:
    """Write in fp16, for a smaller file (a CPU computes in fp32). Other files in the folder stay."""
    pipe = StableDiffusionPipeline(
        **components,
        tokenizer=tokenizer(),
        scheduler=networks.scheduler(),
        feature_extractor=checker.extractor(),
    ).to(torch.float16)
    for name in pipe.components:
        shutil.rmtree(out / name, ignore_errors=True)
    pipe.save_pretrained(out, safe_serialization=True)
    for name, component in components.items():
        if not all(bool(weight.isfinite().all()) for weight in component.state_dict().values()):
            raise ValueError(f"{name} has a weight that is no finite number")
    _pin_versions(out)


def _pin_versions(out: Path) -> None:
    """Remove the path of the training folder, which `save_pretrained` writes into each config."""
    for file in out.rglob("*.json"):
        settings = json.loads(file.read_text("utf-8"))
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def sums(folder: Path) -> str:
    """The checksums of all files, as lines for the catalogue."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.parent != folder)
    files.insert(0, folder / "model_index.json")
    return "\n".join(
        f'"{file.relative_to(folder).as_posix()}" = "{hashlib.sha256(file.read_bytes()).hexdigest()}"' for file in files
    )
