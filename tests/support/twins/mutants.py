"""Ways to make a family's code wrong: the suite must notice each."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from common.recipes.recipe import Recipe
from tests.support.twins import Mutant
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

Arguments = dict[str, Any]


def other_arguments(family: Any, change: Callable[[Arguments], Arguments]) -> Mutant:
    """What the family's prompts give is changed."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        encode = family.encode
        patch.setattr(family, "encode", lambda *given: change(encode(*given)))

    return mutate


def swapped_rows(family: Any) -> Mutant:
    """Each picture gets the prompts of another."""

    def swapped(rows: Any) -> Any:
        return rows.flip(0) if isinstance(rows, torch.Tensor) else rows[::-1] if isinstance(rows, list) else rows

    return other_arguments(family, lambda found: {name: swapped(rows) for name, rows in found.items()})


def without(family: Any, *names: str) -> Mutant:
    """These arguments are left out, such as a mask."""
    return other_arguments(family, lambda found: {name: found[name] for name in found if name not in names})


def negative_ignored(family: Any) -> Mutant:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        encode = family.encode

        def encode_without(self: Any, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> Arguments:
            found: Arguments = encode(
                self, pipe, [recipe.model_copy(update={"negative_prompt": ""}) for recipe in recipes], is_guided
            )
            return found

        patch.setattr(family, "encode", encode_without)

    return mutate


def other_scale(by: float) -> Mutant:
    """The guidance in the other convention: s for 1 + s, or the other way round."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        arguments = DiffusersPipeline._arguments

        def shifted(self: DiffusersPipeline, recipes: Sequence[Recipe]) -> Arguments:
            found, name = arguments(self, recipes), self.model.facts.guidance.argument
            return {**found, name: found[name] + by}

        patch.setattr(DiffusersPipeline, "_arguments", shifted)

    return mutate


def other_value(module: ModuleType, name: str, value: Any) -> Mutant:
    """A constant of the family's module is another, such as the layer that embeddings are taken from."""
    return lambda patch: patch.setattr(module, name, value)
