"""Qwen-Image: a Qwen2.5-VL reads the prompt as what an image is to be described by. Imports torch.

Diffusers packs its latents, 2 × 2 to a token, and its VAE is that of videos: a picture is a video of one frame. It
guides only with a negative prompt, so an empty one is a space, as the model's card has it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from common.catalog.catalog import Model
from common.recipes.recipe import Recipe
from worker.pipelines.families.base import BaseFamily
from worker.pipelines.families.chat import Template, hidden_states

TEMPLATE = Template(
    before="<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>",
    lead="user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
)
UNSEEN = 34  # tokens at the start, which the transformer does not get
LAYER = -1  # of the text encoder


class Family(BaseFamily):
    def plain_arguments(self, model: Model, pipe: Any, recipe: Recipe) -> dict[str, Any]:
        return {"negative_prompt": recipe.negative_prompt or " "}

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        """With a limit that cuts nothing off: `token_limit` has refused what is too long."""
        found: dict[str, Any] = {"max_sequence_length": pipe.tokenizer_max_length}
        found |= _embeddings(pipe, [recipe.prompt for recipe in recipes])
        if is_guided:
            negatives = _embeddings(pipe, [recipe.negative_prompt or " " for recipe in recipes])
            found |= {f"negative_{name}": value for name, value in negatives.items()}
        return found

    def channels(self, pipe: Any) -> int:
        return int(pipe.vae.config.z_dim)

    def to_latents(self, pipe: Any, images: torch.Tensor) -> torch.Tensor:
        mean, std = _statistics(pipe.vae)
        latents = (pipe.vae.encode(images.unsqueeze(2)).latent_dist.mode() - mean) / std
        return self.arrange(pipe, latents.squeeze(2))

    def arrange(self, pipe: Any, grid: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = pipe._pack_latents(grid.contiguous(), *grid.shape)
        return packed

    def to_pixels(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        mean, std = _statistics(pipe.vae)
        grid = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor).to(pipe.vae.dtype)
        images: torch.Tensor = pipe.vae.decode(grid * std + mean, return_dict=False)[0]
        return images.squeeze(2)


def _embeddings(pipe: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Padded to the longest, with a mask."""
    rows = [row[UNSEEN:] for row in hidden_states(pipe, TEMPLATE, prompts, LAYER)]
    masks = [row.new_ones(len(row), dtype=torch.long) for row in rows]
    return {
        "prompt_embeds": pad_sequence(rows, batch_first=True),
        "prompt_embeds_mask": pad_sequence(masks, batch_first=True),
    }


def _statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation of each channel of the latents."""
    settings = vae.config.latents_mean, vae.config.latents_std
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1).to(vae.device, vae.dtype) for values in settings)
    return mean, std
