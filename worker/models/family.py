"""Tells the family of a model from its `model_index.json`, before anything else of it is fetched. Imports no torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.catalog import families
from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import kinds, layout
from worker.models import hub, sentence

UNTOLD = "stable-diffusion"  # of files that do not say: what is wrong with them is found later


def tell_family(model: Model, entry: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The model and its entry, both with the family that the files tell, or the entry's own if it names one.

    Raises ModelRefused if no family of this farm has such a pipeline, or as `check_decided` does.
    """
    family = entry.get("family") or family_of(model, _read_index(model))
    check_decided(model.name, family, entry)
    return replace(model, family=family), {**entry, "family": family}


def check_decided(model: str, family: str, entry: Mapping[str, Any]) -> None:
    """Raises ModelRefused unless the entry says who judges the images of a family that has no safety checker."""
    if entry.get("safety_checker", True) is True and "safety_checker" not in families.families()[family].components:
        raise ModelRefused(sentence("import_undecided", model=model, family=family))


def family_of(model: Model, index: Mapping[str, Any]) -> str:
    """The family by the classes that `model_index.json` names. Raises ModelRefused."""
    kinds.check_index(model, index)
    found = families.of_pipeline(index.get("_class_name"))
    name = found.name if found else UNTOLD
    if name == "stable-diffusion" and (index.get("text_encoder") or [""])[-1] in ("BertForMaskedLM", "BertModel"):
        return "stable-diffusion-zh"
    return name


def _read_index(model: Model) -> dict[str, Any]:
    """Empty if there is none, or none that can be read: what refuses the model then says why."""
    folder = model.source_path or (Path(model.source) if model.source.startswith("/") else None)
    if folder is None:
        return hub.read_index(model)
    try:
        return layout.read_index(folder)
    except (OSError, ValueError):
        return {}
