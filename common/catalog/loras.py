"""LoRAs: small files that change how a model draws. Their entries in the catalogue, and what of them a recipe takes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from common.errors import FieldError

MOST_AT_ONCE = 4
MOST_WEIGHT = 2.0
SHA256 = re.compile(r"[0-9a-f]{64}")

Name = Annotated[str, StringConstraints(strict=True, max_length=200)]


@dataclass(frozen=True)
class Lora:
    """One entry. `source` is a .safetensors file or a folder with one, relative to the catalogue, or a hub id.

    It is for the models that it names, or for all of a family.
    """

    name: str
    source: str
    sha256: str  # of the file
    licence: str
    licence_url: str
    description: str
    path: Path | None  # where it is; None while it is only on the hub
    file: str | None = None  # which one of a folder or repository, if there are several
    revision: str | None = None
    family: str | None = None
    models: tuple[str, ...] = field(default_factory=tuple)

    def fits(self, model: str, family: str) -> bool:
        return model in self.models or family == self.family


class LoraUse(BaseModel):
    """A LoRA that a recipe takes, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(examples=["ink"])
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 1.0


def read_lora(name: str, entry: Mapping[str, Any], base: Path) -> Lora:
    """Raises TypeError for an entry that makes no sense."""
    values = dict(entry)
    values["models"] = tuple(values.get("models", ()))
    path = base / values["source"]
    is_path = path.exists() or values["source"].startswith(("/", "./", "../"))
    lora = Lora(name=name, path=path if is_path else None, **values)
    if not lora.path and not lora.file:
        raise TypeError(f"the LoRA {name} is on the hub, and names no file there")
    if not SHA256.fullmatch(lora.sha256):
        raise TypeError(f"the LoRA {name} has no sha256 of 64 hexadecimal digits")
    if not lora.family and not lora.models:
        raise TypeError(f"the LoRA {name} is for no model and no family")
    return lora


def lora_errors(uses: Iterable[LoraUse], loras: Mapping[str, Lora], model: str, family: str) -> list[FieldError]:
    """What is wrong with the LoRAs that a recipe of this model takes."""
    chosen = tuple(uses)
    wrong = [] if len(chosen) <= MOST_AT_ONCE else [FieldError("lora", f"are {len(chosen)}; at most {MOST_AT_ONCE}")]
    fitting = [name for name, lora in loras.items() if lora.fits(model, family)]
    for place, use in enumerate(chosen):
        if use.name not in fitting:
            what = f"there is no LoRA {use.name!r}" if use.name not in loras else f"{use.name} is not for {model}"
            these = f"there are {', '.join(fitting)}" if fitting else "there is none for it"
            wrong.append(FieldError(f"lora.{place}.name", f"is not to be had: {what}; {these}"))
        if use.name in (other.name for other in chosen[:place]):
            wrong.append(FieldError(f"lora.{place}.name", f"is {use.name!r} again"))
        if not abs(use.weight) <= MOST_WEIGHT:
            wrong.append(
                FieldError(f"lora.{place}.weight", f"is {use.weight:g}; it must be -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
            )
    return wrong
