"""Safety checkers of the farm's own, and a catalogue that names them: `strict` flags every image, `lenient` none."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.catalog import catalog
from common.catalog.catalog import Catalog
from tests.support import checkpoints

PARTS = ("safety_checker", "feature_extractor")
ABOUT = {"licence": "none", "licence_url": "", "description": "noise"}
SIZE = {"width": checkpoints.SIDE, "height": checkpoints.SIDE, "steps": 3, "microbatch": 4}


def make(folder: Path, strict: bool = True) -> Path:
    """Write a checker as a Stable Diffusion has it."""
    whole = checkpoints.make(folder.with_name(f"{folder.name}-whole"), strict=strict)
    for part in PARTS:
        shutil.copytree(whole / part, folder / part)
    shutil.rmtree(whole)
    return folder


def as_one_folder(folder: Path) -> Path:
    """The same, as a folder that is itself the checker."""
    for part in PARTS:
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    return folder


def read(
    file: Path, store: Path, models: Mapping[str, Mapping[str, Any]], checkers: Mapping[str, Mapping[str, Any]]
) -> Catalog:
    """Write a catalogue with these models and checkers, and read it as the farm does."""
    lines = [f'default = "{next(iter(models))}"']
    for kind, entries in (("models", models), ("checkers", checkers)):
        for name, entry in entries.items():
            values = {**ABOUT, **(SIZE if kind == "models" else {}), **entry}
            lines += [f'[{kind}."{name}"]', *(f"{key} = {_toml(value)}" for key, value in values.items())]
    file.write_text("\n".join(lines), "utf-8")
    return catalog.read(file, store)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(each)}" for key, each in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value)
