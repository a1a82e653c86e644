"""Stable Diffusion 1.x and 2.x: a BERT or CLIP text encoder, a UNet, and where it has one a safety checker.

Imports torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from worker.checkpoints import tokenizer
from worker.pipelines.families.base import BaseFamily, Parts
from worker.pipelines.prompt_embeds import encode_prompts


class Family(BaseFamily):
    pipeline_class = diffusers.StableDiffusionPipeline

    def load_tokenizer(self, model: Model, folder: Path, parts: Parts) -> Any:
        return tokenizer.load_for(model, folder, parts["text_encoder"])

    def assemble(self, model: Model, parts: Parts, index: Mapping[str, Any]) -> Any:
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return self.pipeline_class(**{**checker, **parts})

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        prompts, negatives = [r.prompt for r in recipes], [r.negative_prompt for r in recipes]
        return encode_prompts(pipe, prompts, negatives, is_guided)
