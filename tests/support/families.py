"""The model families as published in 2022: the same files, names and settings; tiny weights and vocabularies.

Their entries are the catalogue's, with another folder and size.
"""

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.catalog.catalog import Model, read
from common.config import SHIPPED_CATALOG
from tests.support import checkpoints
from tests.support.parts import SIDE

CATALOG = read(SHIPPED_CATALOG)

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
LMS = {"_class_name": "LMSDiscreteScheduler", **NOISE}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, **NOISE}


@dataclass(frozen=True)
class Family:
    text: str  # text encoder
    length: int  # tokens that every prompt is padded to
    scheduler: dict[str, Any]


FAMILIES = {
    "zh-v0": Family("bert", 512, LMS),  # zh-v1 and zh-v2 differ in the UNet's weights only
    "taiyi": Family("bert", 512, PNDM),
    "sd-1.5": Family("clip", 77, PNDM),
    "rinna": Family("pieces", 77, LMS),
}


def publish(folder: Path, name: str) -> Path:
    family = FAMILIES[name]
    checkpoints.make(folder, family.text, length=family.length)
    checkpoints.as_in_2022(folder)
    scheduler = {**family.scheduler, "_diffusers_version": "0.6.0"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), "utf-8")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def entry(folder: Path, name: str) -> Model:
    """The catalogue's entry, with the folder and the size of the tiny checkpoint."""
    return replace(CATALOG.get(name), source=str(folder), source_path=folder, width=SIDE, height=SIDE, microbatch=4)


def catalog(folder: Path) -> Path:
    """Write a catalogue of all families beside their checkpoints; gives its path."""
    shipped = tomllib.loads(SHIPPED_CATALOG.read_text("utf-8"))["models"]
    lines = ['default = "zh-v0"']
    for name in FAMILIES:
        publish(folder / name, name)
        tiny = {"source": f"./{name}", "width": SIDE, "height": SIDE, "microbatch": 4, "licence_url": ""}
        values = {**shipped[name], **tiny}
        lines += [f'[models."{name}"]', *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (folder / "catalog.toml").write_text("\n".join(lines), "utf-8")
    return folder / "catalog.toml"
