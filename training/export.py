"""The trained parts as one checkpoint, laid out as Taiyi's: what `from_pretrained` and the farm load."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from training import checker, networks
from training.tokens import tokenizer


def export(parts: dict[str, Any], out: Path) -> None:
    """In half precision, which is only how it is kept: a CPU computes in fp32. What else is in the folder stays."""
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer(),
        scheduler=networks.scheduler(),
        feature_extractor=checker.extractor(),
    ).to(torch.float16)
    for name in pipe.components:
        shutil.rmtree(out / name, ignore_errors=True)
    pipe.save_pretrained(out, safe_serialization=True)
    for name, part in parts.items():
        if not all(bool(weight.isfinite().all()) for weight in part.state_dict().values()):
            raise ValueError(f"{name} has a weight that is no finite number")
    _pin_versions(out)


def _pin_versions(out: Path) -> None:
    """Without the folder that it was trained in, which `save_pretrained` writes down as where a part came from."""
    for file in out.rglob("*.json"):
        settings = json.loads(file.read_text("utf-8"))
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def sums(folder: Path) -> str:
    """The lines of the catalogue that name every file the farm may load."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.parent != folder)
    files.insert(0, folder / "model_index.json")
    return "\n".join(
        f'"{file.relative_to(folder).as_posix()}" = "{hashlib.sha256(file.read_bytes()).hexdigest()}"' for file in files
    )
