"""What of a recipe a policy judges: the prompt that is drawn, and the negative prompt unless it is the model's. Pure.

A style's negative prompt is the operator's, as the model's is: it is not judged.
"""

from collections.abc import Mapping
from typing import Any

from common.catalog.catalog import Catalog
from common.catalog.styles import StyleUse
from common.errors import RefusedByPolicy
from common.policy.policy import Policy
from common.recipes.recipe import Recipe


def require(policy: Policy, recipe: Recipe, catalog: Catalog) -> None:
    """Raises RefusedByPolicy."""
    policy.require(recipe.prompt, own_negative_prompt(recipe, catalog))


def refusal_of_stored(recipe: Mapping[str, Any], catalog: Catalog, policy: Policy) -> str | None:
    """Why the policy refuses a stored recipe, some of whose fields this code may not know; None if it accepts it."""
    if not policy.rules:
        return None
    model, negative = catalog.models.get(recipe["model"]), recipe.get("negative_prompt") or ""
    if style := recipe.get("style"):
        negative = StyleUse.model_validate(style, extra="ignore").written_negative_prompt(negative)
    if model and negative == model.negative_prompt:
        negative = ""
    try:
        policy.require(recipe["prompt"], negative)
    except RefusedByPolicy as error:
        return error.message
    return None


def own_negative_prompt(recipe: Recipe, catalog: Catalog) -> str:
    """The negative prompt as it was written, unless it is the model's."""
    written = recipe.written_negative_prompt
    return "" if written == catalog.get(recipe.model).negative_prompt else written
