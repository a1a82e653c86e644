"""Z-Image: a Qwen3 reads the prompt as a user's message, and one transformer reads text and image. Imports torch.

Its guidance is `positive + s · (positive - negative)`, so any scale above 0 guides, and Turbo takes 0.
"""

from collections.abc import Sequence
from typing import Any

import torch

from common.recipes.recipe import Recipe
from worker.pipelines.families.base import BaseFamily
from worker.pipelines.families.chat import Template, hidden_states

TEMPLATE = Template(before="<|im_start|>", lead="user\n", after="<|im_end|>\n<|im_start|>assistant\n")
LAYER = -2  # of the text encoder


class Family(BaseFamily):
    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        """Lists of embeddings as long as their prompts: diffusers pads and masks them."""
        embeds = hidden_states(pipe, TEMPLATE, [recipe.prompt for recipe in recipes], LAYER)
        if not is_guided:
            return {"prompt_embeds": embeds}
        negatives = hidden_states(pipe, TEMPLATE, [recipe.negative_prompt for recipe in recipes], LAYER)
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negatives}

    def latent_dtype(self, pipe: Any) -> torch.dtype:
        return torch.float32
