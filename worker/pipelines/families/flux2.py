"""FLUX.2 klein: a Qwen3 reads the prompt as a user's message, and three of its layers are stacked. Imports torch.

Its VAE's latents are taken 2×2 together as the channels of a patch, and normalised by statistics that the VAE brings.
The argument `latents` is a grid of patches; between two steps they are packed: images × patches × channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from worker.pipelines.families.base import BaseFamily, Parts
from worker.pipelines.families.chat import Template

TEMPLATE = Template(
    before="<|im_start|>", lead="user\n", after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
LAYERS = (9, 18, 27)  # of the text encoder
LENGTH = 512  # tokens that each prompt is padded to: the transformer reads the pads too


class Family(BaseFamily):
    def assemble(self, model: Model, parts: Parts, index: Mapping[str, Any]) -> Any:
        return diffusers.Flux2KleinPipeline(**parts, is_distilled=bool(index.get("is_distilled")))

    def token_limit(self, model: Model, pipe: Any) -> int:
        return min(model.token_limit, LENGTH - len(TEMPLATE.token_ids(pipe.tokenizer, "")))

    def plain_arguments(self, model: Model, pipe: Any, recipe: Recipe) -> dict[str, Any]:
        """The pipeline's own negative prompt is ""; another one goes in as its embeddings."""
        negative = recipe.negative_prompt
        return {"negative_prompt_embeds": pipe.encode_prompt(negative)[0] if negative else None}

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        prompts = [recipe.prompt for recipe in recipes]
        if not is_guided:
            return {"prompt_embeds": _embeds(pipe, prompts)}
        embeds, negatives = _embeds(pipe, [*prompts, *(recipe.negative_prompt for recipe in recipes)]).chunk(2)
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negatives}

    def to_latents(self, pipe: Any, images: torch.Tensor) -> torch.Tensor:
        latents = self.arrange(pipe, pipe.vae.encode(images).latent_dist.mode())
        statistics = pipe.vae.bn
        deviation = (statistics.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        normalised: torch.Tensor = (latents - statistics.running_mean) / deviation
        return normalised

    def arrange(self, pipe: Any, grid: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = pipe._pack_latents(pipe._patchify_latents(grid))
        return packed

    def as_argument(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        side = 2 * pipe.vae_scale_factor
        return latents.permute(0, 2, 1).unflatten(2, (height // side, width // side))

    def to_pixels(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        images: torch.Tensor = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
        return images


def _embeds(pipe: Any, texts: Sequence[str]) -> torch.Tensor:
    """Texts × LENGTH × the features of all LAYERS. Equal texts are read once."""
    different = list(dict.fromkeys(texts))
    ids = [TEMPLATE.token_ids(pipe.tokenizer, text) for text in different]
    tokens = pipe.tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=LENGTH, return_tensors="pt")
    output = pipe.text_encoder(**tokens.to(pipe.device), output_hidden_states=True, use_cache=False, logits_to_keep=1)
    embeds = torch.cat([output.hidden_states[layer] for layer in LAYERS], dim=-1)
    return embeds[[different.index(text) for text in texts]]
