"""Prompts in the template of a language model's chat, from which several families take their embeddings.

The template's control tokens act; those that a user writes in a prompt are text. Imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Template:
    """What stands around a prompt: `before` and `after` begin and end with control tokens, `lead` is plain text."""

    before: str
    lead: str
    after: str

    def token_ids(self, tokenizer: Any, prompt: str) -> list[int]:
        """The tokenizer's own ids of the whole text, but for control tokens in the prompt."""

        def ids(text: str, are_controls_text: bool) -> list[int]:
            found: list[int] = tokenizer(
                text, add_special_tokens=False, split_special_tokens=are_controls_text
            ).input_ids
            return found

        return ids(self.before, False) + ids(self.lead + prompt, True) + ids(self.after, False)


def hidden_states(pipe: Any, template: Template, prompts: Sequence[str], layer: int) -> list[torch.Tensor]:
    """What this layer of the text encoder gives for each prompt: tokens × features.

    Each prompt is read alone, so that nothing depends on the others; equal ones once.
    """
    found: dict[str, torch.Tensor] = {}
    for prompt in dict.fromkeys(prompts):
        ids = torch.tensor([template.token_ids(pipe.tokenizer, prompt)], device=pipe.device)
        output = pipe.text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        found[prompt] = output.hidden_states[layer][0]
    return [found[prompt] for prompt in prompts]
