"""The key of a picture: a digest of all that decides it. Pure.

    the recipe without its list of seeds, and the seed of this picture ──┐
    the digests of the weights, the LoRAs, the source and the mask ──────┴──► sha256, in hex

So a picture has one key: with two siblings or with four, in every dataset, on every farm. Other weights give another
one. The class of the worker is not part of it: see `DrawnWith.picture_class`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.recipes.recipe import Recipe, canonical_json


@dataclass(frozen=True)
class DrawnWith:
    """What draws a picture, beside its recipe.

    `weights`: the hub's commit, or a digest of a local model's files; None: nobody knows. `loras`: their sha256 by
    name. `picture_class`: a digest of the worker's class and of how it loads the model; pictures of equal keys and
    classes are equal.
    """

    weights: str | None = None
    loras: Mapping[str, str] = field(default_factory=dict)
    picture_class: str = ""

    def keys(self, recipe: Recipe) -> list[str]:
        """The key of each picture of the recipe.

        Digests stand in place of names. Without weights the model's name stays: the key of what nobody has drawn.
        """
        content = recipe.content
        del content["seeds"]
        if self.weights is not None:
            content["model"] = {"weights": self.weights}
        if recipe.lora:
            content["lora"] = [[self.loras.get(use.name, use.name), use.weight] for use in recipe.lora]
        return [_digest(canonical_json({**content, "seed": seed})) for seed in recipe.seeds]

    def key(self, recipe: Recipe, index: int) -> str:
        """The key of one picture."""
        return self.keys(of_one(recipe, index))[0]


def of_one(recipe: Recipe, index: int) -> Recipe:
    """The recipe of one picture alone."""
    return recipe.model_copy(update={"seeds": (recipe.seeds[index],)})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
