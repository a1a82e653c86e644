"""LoRAs: small files that change how a model draws. Their entries in the catalogue, and the LoRAs of a recipe.

Knows no files: `worker.loras` reads them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from common.catalog import sentence
from common.errors import FieldError
from common.sentences import Sentence

MAX_LORAS = 4  # of one recipe
MAX_LORA_WEIGHT = 2.0
SHA256 = re.compile(r"[0-9a-f]{64}")

Name = Annotated[str, StringConstraints(strict=True, max_length=200)]


@dataclass(frozen=True)
class Lora:
    """One entry. `source` is a .safetensors file or a folder with one, relative to the catalogue, or a hub id.

    It is for the models that it names, and for all models of its family.
    """

    name: str
    source: str
    sha256: str  # of the file
    licence: str
    licence_url: str
    description: str
    path: Path | None  # the local source; None for one of the hub
    file: str | None = None  # the name of the file, if a folder or repository has several
    revision: str | None = None
    family: str | None = None
    models: tuple[str, ...] = field(default_factory=tuple)

    def fits(self, model: str, family: str) -> bool:
        return model in self.models or family == self.family


class LoraUse(BaseModel):
    """A LoRA in a recipe, and its weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(examples=["ink"])
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 1.0


def read_lora(name: str, entry: Mapping[str, Any], base: Path) -> Lora:
    """The LoRA of an entry; `base` is the catalogue's folder. Raises TypeError or KeyError for a wrong entry."""
    values = dict(entry)
    values["models"] = tuple(values.get("models", ()))
    path = base / values["source"]
    is_path = path.exists() or values["source"].startswith(("/", "./", "../"))
    lora = Lora(name=name, path=path if is_path else None, **values)
    if not lora.path and not lora.file:
        raise TypeError(sentence("lora_file_missing", lora=name))
    if not SHA256.fullmatch(lora.sha256):
        raise TypeError(sentence("lora_sha256_wrong", lora=name))
    if not lora.family and not lora.models:
        raise TypeError(sentence("lora_for_nothing", lora=name))
    return lora


def digests(loras: Mapping[str, Lora]) -> dict[str, str]:
    """The sha256 of each by its name."""
    return {name: lora.sha256 for name, lora in loras.items()}


def lora_errors(uses: Sequence[LoraUse], loras: Mapping[str, Lora], model: str, family: str) -> Iterator[FieldError]:
    """The errors in the LoRAs of a recipe for this model."""
    if len(uses) > MAX_LORAS:
        yield FieldError("lora", sentence("too_many_loras", count=len(uses), most=MAX_LORAS))
    fitting = [name for name, lora in loras.items() if lora.fits(model, family)]
    for position, use in enumerate(uses):
        if use.name not in fitting:
            yield FieldError(f"lora.{position}.name", _not_fitting(use.name, use.name in loras, model, fitting))
        if use.name in (other.name for other in uses[:position]):
            yield FieldError(f"lora.{position}.name", sentence("lora_twice", lora=use.name))
        if not abs(use.weight) <= MAX_LORA_WEIGHT:
            out_of_range = sentence("lora_weight_out_of_range", weight=use.weight, most=MAX_LORA_WEIGHT)
            yield FieldError(f"lora.{position}.weight", out_of_range)


def _not_fitting(lora: str, is_known: bool, model: str, fitting: Iterable[str]) -> Sentence:
    choices = ", ".join(fitting)
    if is_known:
        if choices:
            return sentence("lora_of_other_model", lora=lora, model=model, choices=choices)
        return sentence("lora_of_other_model_and_no_other", lora=lora, model=model)
    if choices:
        return sentence("lora_unknown", lora=lora, model=model, choices=choices)
    return sentence("lora_unknown_and_no_other", lora=lora, model=model)
