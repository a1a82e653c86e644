"""Prompts as the UNet reads them: what the text encoder makes of them, with the weights of their parts carried out.

    e′ = e₀ + w · (e − e₀)        for each token of a part of weight w

e is the encoder's output at that token, e₀ its output for the empty prompt at the same place. 1 changes nothing, 0
takes the part out, 2 doubles what it adds to saying nothing. (Others multiply e and restore the mean of all; the mean
of a BertModel's outputs, which are normalised, is near zero, and to restore it would multiply them by anything.)
Works with every text encoder that a pipeline takes. Imports torch, so import it late.
"""

from collections.abc import Sequence
from typing import Any

import torch

from common.recipes import prompt_weighting


@torch.no_grad()
def encode_prompts(
    pipe: Any, prompts: Sequence[str], negative_prompts: Sequence[str], guidance: float
) -> dict[str, Any]:
    """The arguments of a pipeline call that say what to draw: texts where nothing weighs, else embeddings."""
    texts = [[prompt_weighting.strip_weights(prompt) for prompt in several] for several in (prompts, negative_prompts)]
    if not any(map(prompt_weighting.has_weights, (*prompts, *negative_prompts))):
        return {"prompt": texts[0], "negative_prompt": texts[1]}
    is_guided = guidance > 1
    said, unsaid = pipe.encode_prompt(texts[0], pipe.device, 1, is_guided, texts[1])
    empty = pipe.encode_prompt([""], pipe.device, 1, False)[0]
    arguments = {"prompt_embeds": _weighed(pipe.tokenizer, prompts, said, empty)}
    if is_guided:
        arguments["negative_prompt_embeds"] = _weighed(pipe.tokenizer, negative_prompts, unsaid, empty)
    return arguments


def _weighed(tokenizer: Any, prompts: Sequence[str], said: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """What has no weight stays as it is, to the bit."""
    weights = torch.tensor([_weights(tokenizer, prompt) for prompt in prompts], device=said.device).unsqueeze(-1)
    return torch.where(weights == 1, said, empty + weights.to(said.dtype) * (said - empty))


def _weights(tokenizer: Any, prompt: str) -> list[float]:
    """Of each token: that of its first character. What frames and fills a prompt has none."""
    parts = prompt_weighting.split_fragments(prompt)
    of_characters = [part.weight for part in parts for _ in part.text]
    found = tokenizer(
        "".join(part.text for part in parts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_offsets_mapping=True,
    )
    return [of_characters[start] if end > start else 1.0 for start, end in found.offset_mapping]
