"""FLUX.1: CLIP gives one vector for the whole prompt, T5 one for each token, both at fixed lengths. Imports torch.

CLIP reads the first 77 tokens, and a prompt may be longer, as in diffusers: it is T5 that reads it whole. Between two
steps latents are packed: images × patches × the values of 2×2 latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.catalog.catalog import Model
from common.recipes import control_tokens
from common.recipes.recipe import Recipe
from worker.pipelines.families.base import BaseFamily, Parts

LENGTH, LENGTH_DISTILLED = 512, 256  # tokens that each prompt is padded to: without a mask, so pads count


class Family(BaseFamily):
    def load_tokenizer(self, model: Model, folder: Path, parts: Parts) -> Any:
        tokenizer = super().load_tokenizer(model, folder, parts)
        control_tokens.read_as_text(tokenizer.backend_tokenizer)
        return tokenizer

    def token_limit(self, model: Model, pipe: Any) -> int:
        return min(model.token_limit, _length(pipe))

    def plain_arguments(self, model: Model, pipe: Any, recipe: Recipe) -> dict[str, Any]:
        """The card of schnell says 256 tokens; diffusers' default is 512."""
        return {"max_sequence_length": model.token_limit}

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        prompts = [recipe.prompt for recipe in recipes]
        embeds, pooled, _ = pipe.encode_prompt(prompts, device=pipe.device, max_sequence_length=_length(pipe))
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def arrange(self, pipe: Any, grid: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = pipe._pack_latents(grid, *grid.shape)
        return packed

    def to_pixels(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        grid = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        return super().to_pixels(pipe, grid, width, height)


def _length(pipe: Any) -> int:
    return LENGTH if pipe.transformer.config.guidance_embeds else LENGTH_DISTILLED
