r"""Weights in a prompt: `(猫:1.3)` asks for more of the cat, `(猫:0.5)` for less. Pure; knows no token and no model.

Only `(text:number)` is syntax, and it nests: weights multiply. Other parentheses are text; `\(` and `\)` always are.
What a weight does to the picture is in `worker.pipelines.prompt_embeds`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MOST = 2.0
SIGN = re.compile(r"\\[()]|\(|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)")


@dataclass(frozen=True)
class Part:
    text: str
    weight: float


def strip_weights(prompt: str) -> str:
    """The prompt as a model reads it: without the syntax."""
    return "".join(part.text for part in parts(prompt)) if _may_weigh(prompt) else prompt


def has_weights(prompt: str) -> bool:
    """Whether any of it has a weight."""
    return _may_weigh(prompt) and any(part.weight != 1 for part in parts(prompt))


def weight_error(prompt: str) -> str | None:
    """What is wrong with its weights, in words that go on from the name of the field."""
    for part in parts(prompt) if _may_weigh(prompt) else ():
        if not 0 <= part.weight <= MOST:
            return rf"weighs {part.text!r} by {part.weight:g}; it must be 0 to {MOST:g} (and \( is a parenthesis)"
    return None


@lru_cache(1024)
def parts(prompt: str) -> tuple[Part, ...]:
    """Its text, in pieces of one weight each."""
    return tuple(_parts(prompt, _pairs(prompt)))


def _may_weigh(prompt: str) -> bool:
    return "(" in prompt or "\\)" in prompt


def _pairs(prompt: str) -> dict[int, tuple[int, float]]:
    """Where each `(` that is syntax stands: where its `:number)` begins, and the number."""
    found, open_at = dict[int, tuple[int, float]](), list[int]()
    for sign in SIGN.finditer(prompt):
        if sign[0] == "(":
            open_at.append(sign.start())
        elif sign[0].endswith(")") and sign[0][0] != "\\" and open_at:
            start = open_at.pop()
            if sign[1]:
                found[start] = sign.start(), float(sign[1])
    return found


def _parts(prompt: str, pairs: dict[int, tuple[int, float]]) -> Iterator[Part]:
    closing = {end for end, _ in pairs.values()}
    weights, at = [1.0], 0
    for sign in SIGN.finditer(prompt):
        start, is_escaped = sign.start(), sign[0][0] == "\\"
        if not (is_escaped or start in pairs or start in closing):
            continue
        if start > at:
            yield Part(prompt[at:start], weights[-1])
        at = sign.end()
        if is_escaped:
            at -= 1  # the parenthesis belongs to the next piece
        elif start in pairs:
            weights.append(weights[-1] * pairs[start][1])
        else:
            weights.pop()
    if at < len(prompt):
        yield Part(prompt[at:], weights[-1])
