"""Stable Diffusion XL: two CLIP text encoders, and a VAE that overflows in fp16. Imports torch.

The UNet reads the outputs of both encoders side by side, and the pooled output of the second.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch

from common.catalog.catalog import Model
from common.recipes import prompt_weighting
from common.recipes.recipe import Recipe
from worker.checkpoints import tokenizer
from worker.pipelines.families.base import BaseFamily, Parts
from worker.pipelines.prompt_embeds import apply_weights


class Family(BaseFamily):
    def load_tokenizer(self, model: Model, folder: Path, parts: Parts) -> Any:
        return tokenizer.load_for(model, folder, parts[folder.name.replace("tokenizer", "text_encoder")])

    def assemble(self, model: Model, parts: Parts, index: Mapping[str, Any]) -> Any:
        zeros = index.get("force_zeros_for_empty_prompt", True)
        return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        embeds, pooled = self._embeds(pipe, [recipe.prompt for recipe in recipes])
        arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if not is_guided:
            return arguments
        negatives = [recipe.negative_prompt for recipe in recipes]
        embeds, pooled = self._embeds(pipe, negatives)
        if pipe.config.force_zeros_for_empty_prompt:
            given = [bool(prompt_weighting.strip_weights(negative)) for negative in negatives]
            is_given = torch.tensor(given, device=embeds.device).unsqueeze(-1)
            embeds, pooled = embeds.where(is_given.unsqueeze(-1), 0), pooled.where(is_given, 0)
        return {**arguments, "negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}

    def _embeds(self, pipe: Any, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of both encoders, images × tokens × (size + size), and the pooled outputs of the second."""
        texts = [prompt_weighting.strip_weights(prompt) for prompt in prompts]
        embeds, _, pooled, _ = pipe.encode_prompt(texts, device=pipe.device, do_classifier_free_guidance=False)
        if any(map(prompt_weighting.has_weights, prompts)):
            empty = pipe.encode_prompt("", device=pipe.device, do_classifier_free_guidance=False)[0]
            sizes = [encoder.config.hidden_size for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
            of_both = zip(
                (pipe.tokenizer, pipe.tokenizer_2), embeds.split(sizes, -1), empty.split(sizes, -1), strict=True
            )
            embeds = torch.cat([apply_weights(words, prompts, part, of_none) for words, part, of_none in of_both], -1)
        return embeds, pooled

    def to_latents(self, pipe: Any, images: torch.Tensor) -> torch.Tensor:
        with without_overflow(pipe.vae) as vae:
            return super().to_latents(pipe, images.to(vae.dtype))

    def to_pixels(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        with without_overflow(pipe.vae) as vae:
            return super().to_pixels(pipe, latents.to(vae.dtype), width, height)


@contextmanager
def without_overflow(vae: Any) -> Iterator[Any]:
    """The VAE, in fp32 for the while if it says that fp16 is not enough for it: its own numbers stay the same."""
    dtype = vae.dtype
    try:
        yield vae.to(torch.float32) if dtype == torch.float16 and vae.config.force_upcast else vae
    finally:
        vae.to(dtype)
