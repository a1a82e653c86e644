"""Kolors: the UNet and the VAE of Stable Diffusion XL, with ChatGLM as its text encoder. Imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from common.catalog.catalog import Model
from common.errors import ModelRefused
from common.recipes.recipe import Recipe
from worker.checkpoints import sentence, tokenizer
from worker.pipelines.families import sdxl
from worker.pipelines.families.base import Parts


class Family(sdxl.Family):
    def load_tokenizer(self, model: Model, folder: Path, parts: Parts) -> Any:
        """Its text encoder has a few tokens more than it, for its size is rounded up."""
        words, known = tokenizer.load_tokenizer(folder), parts["text_encoder"].config.padded_vocab_size
        if len(words) > known:
            raise ModelRefused(
                sentence("model_vocabulary_mismatch", model=model.name, tokens=len(words), expected=known)
            )
        return words

    def assemble(self, model: Model, parts: Parts, index: Mapping[str, Any]) -> Any:
        return diffusers.KolorsPipeline(**parts)

    def token_limit(self, model: Model, pipe: Any) -> int:
        return min(model.token_limit, model.facts.token_limit)  # diffusers' call pads to that

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        prompts, negatives = [recipe.prompt for recipe in recipes], [recipe.negative_prompt for recipe in recipes]
        encoded = pipe.encode_prompt(prompts, pipe.device, 1, is_guided, negatives)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value for name, value in zip(names, encoded, strict=True) if value is not None}
