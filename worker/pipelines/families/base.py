"""What a family's code must do: assemble diffusers' pipeline, encode prompts, and turn pixels into latents and back.

The defaults are those of a family whose latents are a grid, `images × channels × height × width`, scaled by the VAE's
factor. Batching, seeds, steps, cancelling, NaN, memory, input pictures, LoRAs and the safety checker are common code:
`worker.pipelines.diffusers_pipeline`. Imports torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from common.catalog.catalog import Model
from common.recipes import prompt_weighting
from common.recipes.recipe import Recipe
from worker.checkpoints import plain_files

Parts = Mapping[str, Any]  # the components of a checkpoint by name: modules, tokenizers; the scheduler's config


class BaseFamily:
    reads_masks = False  # whether the denoiser does itself, so that nothing else keeps the source outside of them

    def load_tokenizer(self, model: Model, folder: Path, parts: Parts) -> Any:
        """A tokenizer of the checkpoint, to which special tokens in a prompt are text.

        Raises ModelRefused if it does not fit its text encoder.
        """
        with plain_files.view(folder) as files:
            return transformers.AutoTokenizer.from_pretrained(
                files, split_special_tokens=True, trust_remote_code=False, local_files_only=True
            )

    def assemble(self, model: Model, parts: Parts, index: Mapping[str, Any]) -> Any:
        """Diffusers' pipeline of these components; `index` is the checkpoint's model_index.json."""
        pipeline_class = getattr(diffusers, model.facts.pipelines[0])
        return pipeline_class(**parts)

    def count_tokens(self, model: Model, pipe: Any, text: str) -> int:
        """The tokens of a prompt, by which its limit is counted."""
        plain = prompt_weighting.strip_weights(text) if model.facts.weighted else text
        return len(pipe.components[model.facts.tokenizer](plain).input_ids)

    def token_limit(self, model: Model, pipe: Any) -> int:
        return int(min(model.token_limit, pipe.components[model.facts.tokenizer].model_max_length))

    def encode(self, pipe: Any, recipes: Sequence[Recipe], is_guided: bool) -> dict[str, Any]:
        """The arguments of diffusers' call that stand for the prompts, one row a recipe.

        Embeddings, so that what a row holds does not depend on the other rows.
        """
        raise NotImplementedError

    def mask_arguments(self, pipe: Any, images: torch.Tensor, masks: torch.Tensor) -> dict[str, Any]:
        """The arguments of diffusers' call that stand for sources and masks, if the denoiser reads them.

        Images of -1 to 1, images × RGB × height × width; masks are 1 where to repaint, images × 1 × height × width.
        """
        return {}

    def plain_arguments(self, model: Model, pipe: Any, recipe: Recipe) -> dict[str, Any]:
        """What plain diffusers gets for this recipe by the model's card, beside prompt, guidance, size and steps."""
        return {} if model.facts.negative_prompt == "no" else {"negative_prompt": recipe.negative_prompt or None}

    def latent_dtype(self, pipe: Any) -> torch.dtype:
        """Of the latents between two steps."""
        dtype: torch.dtype = (pipe.components.get("unet") or pipe.transformer).dtype
        return dtype

    def channels(self, pipe: Any) -> int:
        """Of the VAE's latents."""
        return int(pipe.vae.config.latent_channels)

    def to_latents(self, pipe: Any, images: torch.Tensor) -> torch.Tensor:
        """Latents as they are between two steps, of images -1 to 1: the mode of the encoder's distribution."""
        vae = pipe.vae
        latents: torch.Tensor = vae.encode(images).latent_dist.mode()
        return self.arrange(pipe, (latents - _shift(vae)) * vae.config.scaling_factor)

    def arrange(self, pipe: Any, grid: torch.Tensor) -> torch.Tensor:
        """A grid of the VAE's latents (images × channels × height × width), in the order between two steps."""
        return grid

    def as_argument(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Latents in the order between two steps, in that of the call's argument `latents`."""
        return latents

    def to_pixels(self, pipe: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Images, about -1 to 1, of what diffusers' call returns for `output_type="latent"`."""
        vae, latents = pipe.vae, latents.to(pipe.vae.dtype)
        images: torch.Tensor = vae.decode(latents / vae.config.scaling_factor + _shift(vae), return_dict=False)[0]
        return images


def _shift(vae: Any) -> float:
    return vae.config.get("shift_factor") or 0.0
