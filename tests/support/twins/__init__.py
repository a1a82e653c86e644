"""Twins: for each family of models a tiny checkpoint of random weights, and what plain diffusers makes of it.

A module with a NAME is a twin. The suite is `tests/conformance/test_twins.py`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from common.catalog.catalog import Licence, Model
from common.catalog.families import families
from common.recipes.recipe import Recipe

Mutant = Callable[[pytest.MonkeyPatch], None]  # makes the family's code wrong in one way


class Twin(Protocol):
    @property
    def NAME(self) -> str: ...

    @property
    def MUTANTS(self) -> Mapping[str, Mutant]: ...

    def make(self, folder: Path) -> Path:
        """Write the checkpoint as diffusers does."""

    def entry(self, folder: Path) -> Model:
        """Its entry in a catalogue."""

    def reference(self, folder: Path, recipe: Recipe, seed: int) -> NDArray[np.uint8]:
        """The picture of plain diffusers, called as the model's card says; none of our code."""


def twins() -> list[Twin]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return [cast("Twin", module) for module in modules if hasattr(module, "NAME")]


def entry_of(family: str, folder: Path, **values: Any) -> Model:
    """The entry of a tiny checkpoint, with the family's defaults."""
    named = {"name": family, "family": family, "source": str(folder), "source_path": folder, "description": "noise"}
    return Model(**{**families()[family].defaults, **named, "licence": Licence("none", ""), **values})
