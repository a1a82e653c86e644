r"""Weights in a prompt: `(猫:1.3)` asks for more of the cat, `(猫:0.5)` for less. Pure; knows no tokens and no models.

The syntax is `(text:number)`, which nests: weights multiply. Other parentheses are text, and `\(` and `\)` always are.
`worker.pipelines.prompt_embeds` applies the weights.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from common.recipes import sentence
from common.recipes.text_cache import TextCache
from common.sentences import Sentence

MAX_PROMPT_WEIGHT = 2.0
# Possessive, so that it never tries a number or spaces again in another way: its time is linear in the prompt.
SYNTAX = re.compile(r"\\[()]|\(|:\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*+\)|\)")
FRAGMENT_BYTES = 100  # of a fragment beside its text
MAX_CACHED_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a prompt with one weight."""

    text: str
    weight: float


def strip_weights(prompt: str) -> str:
    """The prompt without the syntax: what a model reads."""
    return "".join(fragment.text for fragment in split_fragments(prompt)) if _may_have_weights(prompt) else prompt


def has_weights(prompt: str) -> bool:
    """Whether any of it has a weight other than 1."""
    return _may_have_weights(prompt) and any(fragment.weight != 1 for fragment in split_fragments(prompt))


def weight_error(prompt: str) -> Sentence | None:
    """What is wrong with its weights. The sentence follows the name of the field."""
    for fragment in split_fragments(prompt) if _may_have_weights(prompt) else ():
        if not 0 <= fragment.weight <= MAX_PROMPT_WEIGHT:
            text, weight = fragment.text, fragment.weight
            return sentence("weight_out_of_range", text=text, weight=weight, most=MAX_PROMPT_WEIGHT)
    return None


def split_fragments(prompt: str) -> tuple[Fragment, ...]:
    """The text of a prompt, in pieces of one weight each."""
    if (found := _cache.get(prompt)) is None:
        found = tuple(_fragments(prompt, _find_pairs(prompt)))
        _cache.put(prompt, found)
    return found


def _may_have_weights(prompt: str) -> bool:
    return "(" in prompt or "\\)" in prompt


def _find_pairs(prompt: str) -> dict[int, tuple[int, float]]:
    """The offset of each `(` that is syntax → the offset of its `:number)`, and the number."""
    found, open_at = dict[int, tuple[int, float]](), list[int]()
    for token in SYNTAX.finditer(prompt):
        if token[0] == "(":
            open_at.append(token.start())
        elif token[0].endswith(")") and token[0][0] != "\\" and open_at:
            start = open_at.pop()
            if token[1]:
                found[start] = token.start(), float(token[1])
    return found


def _fragments(prompt: str, pairs: dict[int, tuple[int, float]]) -> Iterator[Fragment]:
    closing = {end for end, _ in pairs.values()}
    weights, offset = [1.0], 0
    for token in SYNTAX.finditer(prompt):
        start, is_escaped = token.start(), token[0][0] == "\\"
        if not (is_escaped or start in pairs or start in closing):
            continue
        if start > offset:
            yield Fragment(prompt[offset:start], weights[-1])
        offset = token.end()
        if is_escaped:
            offset -= 1  # the parenthesis belongs to the next piece
        elif start in pairs:
            weights.append(weights[-1] * pairs[start][1])
        else:
            weights.pop()
    if offset < len(prompt):
        yield Fragment(prompt[offset:], weights[-1])


def _bytes_of(fragments: tuple[Fragment, ...]) -> int:
    return sum(FRAGMENT_BYTES + sys.getsizeof(fragment.text) for fragment in fragments)


_cache = TextCache[tuple[Fragment, ...]](MAX_CACHED_BYTES, _bytes_of)  # each prompt is read several times in a row
