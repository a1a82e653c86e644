"""How many tokens a prompt has for a model, and what the model cannot read in it. Counts as the worker does.

Knows no more of a model than its `tokenizer.json` (no torch); where that is not on this host it says nothing, and the
worker checks.
"""

from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from common.catalog import Model
from common.errors import FieldError, PromptTooLong
from common.recipe import Recipe


class PromptCounter:
    """Reads texts as the tokenizer in this file does: nothing cut, nothing padded, `[SEP]` in a text is text."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._unknown = getattr(self._tokenizer.model, "unk_token", None)

    def count(self, text: str) -> int:
        """Tokens, with the two that frame every text."""
        return len(self._tokenizer.encode(text).ids)

    def unknown(self, text: str) -> tuple[str, ...]:
        """The words that the model has no token for, in their order, each once."""
        read = self._tokenizer.encode(text)
        spans = [span for token, span in zip(read.tokens, read.offsets, strict=True) if token == self._unknown]
        return tuple(dict.fromkeys(text[start:end] for start, end in spans))


def check(recipe: Recipe, model: Model) -> None:
    """Raises PromptTooLong, which names the field, the count and the limit."""
    if (counter := counter_of(model)) is None:
        return
    counts = {field: counter.count(getattr(recipe, field)) for field in ("prompt", "negative_prompt")}
    wrong = tuple(
        FieldError(field, too_long(count, model.name, model.token_limit))
        for field, count in counts.items()
        if count > model.token_limit
    )
    if wrong:
        raise PromptTooLong("; ".join(f"{e.field} {e.message}" for e in wrong) + ".", fields=wrong)


def too_long(count: int, model: str, limit: int) -> str:
    return f"has {count} tokens; {model} reads at most {limit}"


def warnings(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """One line for each reason why the picture may not show what the prompt says."""
    lines = []
    if model.vocabulary and not any(word in recipe.prompt for word in model.vocabulary.words):
        lines.append(model.vocabulary.advice)
    if (counter := counter_of(model)) and (unknown := counter.unknown(recipe.prompt)):
        lines.append(f"{model.name} cannot read {' '.join(unknown)} and draws the prompt as if it were not there.")
    return tuple(lines)


def counter_of(model: Model) -> PromptCounter | None:
    """The counter of a model whose tokenizer is on this host."""
    file = model.tokenizer_file
    return _counter(file, file.stat().st_mtime_ns) if file else None


@lru_cache(maxsize=64)
def _counter(file: Path, mtime_ns: int) -> PromptCounter:
    return PromptCounter(file)
