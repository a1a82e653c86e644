"""Encodes prompts for the UNet, with the weights of their parts applied.

    e′ = e₀ + w · (e − e₀)        for each token of a part of weight w

e is the text encoder's output at that token, e₀ its output for the empty prompt at the same position. Weight 1 changes
nothing, 0 removes the part, 2 doubles its effect. (Others multiply e and restore the mean of all outputs. BertModel's
outputs are normalised, their mean is near zero, and restoring it would multiply them by anything.) Works with every
text encoder. Imports torch.
"""

from collections.abc import Sequence
from typing import Any

import torch

from common.recipes import prompt_weighting


@torch.no_grad()
def encode_prompts(
    pipe: Any, prompts: Sequence[str], negative_prompts: Sequence[str], is_guided: bool
) -> dict[str, Any]:
    """The prompt arguments of a pipeline call: embeddings, and those of the negative prompts if they guide."""
    texts = [[prompt_weighting.strip_weights(prompt) for prompt in several] for several in (prompts, negative_prompts)]
    embeds, negative_embeds = pipe.encode_prompt(texts[0], pipe.device, 1, is_guided, texts[1])
    if any(map(prompt_weighting.has_weights, (*prompts, *negative_prompts))):
        empty = pipe.encode_prompt([""], pipe.device, 1, False)[0]
        embeds = apply_weights(pipe.tokenizer, prompts, embeds, empty)
        if is_guided:
            negative_embeds = apply_weights(pipe.tokenizer, negative_prompts, negative_embeds, empty)
    return {"prompt_embeds": embeds, **({"negative_prompt_embeds": negative_embeds} if is_guided else {})}


def apply_weights(tokenizer: Any, prompts: Sequence[str], embeds: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Embeddings of weight 1 stay the same to the bit."""
    weights = torch.tensor([_token_weights(tokenizer, prompt) for prompt in prompts], device=embeds.device)
    weights = weights.unsqueeze(-1)
    return torch.where(weights == 1, embeds, empty + weights.to(embeds.dtype) * (embeds - empty))


def _token_weights(tokenizer: Any, prompt: str) -> list[float]:
    """The weight of each token: that of its first character, and 1 for special tokens and padding."""
    parts = prompt_weighting.split_fragments(prompt)
    character_weights = [part.weight for part in parts for _ in part.text]
    tokens = tokenizer(
        "".join(part.text for part in parts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_offsets_mapping=True,
    )
    return [character_weights[start] if end > start else 1.0 for start, end in tokens.offset_mapping]
