"""The code of a made-up family. Its text encoder reads pads as words, so prompts of different length must not share."""

from collections.abc import Sequence
from typing import Any

from common.recipes.recipe import Recipe
from worker.pipelines.families.base import BaseFamily


class Family(BaseFamily):
    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        texts = [recipe.prompt for recipe in recipes] + [recipe.negative_prompt for recipe in recipes]
        tokens = pipe.tokenizer(texts, padding="longest", return_tensors="pt")
        embeds = pipe.text_encoder(tokens.input_ids.to(pipe.device)).last_hidden_state
        prompts, negatives = embeds.chunk(2)
        return {"prompt_embeds": prompts, **({"negative_prompt_embeds": negatives} if is_guided else {})}
