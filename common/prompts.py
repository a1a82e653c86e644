"""How many tokens a prompt has for a model, and what the model cannot read in it. Counts as the worker does.

Knows no more of a model than its `tokenizer.json` (no torch); where that is not on this host it says nothing, and the
worker checks.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from common.catalog import Model
from common.errors import FieldError, PromptTooLong
from common.recipe import Recipe

MOST_KNOWN = 10_000
AT_ONCE = 256  # texts: those of 8,000 characters are 200 MB as the tokenizer reads them
LOOK_AGAIN_S = 1.0  # a model may be imported while this process runs


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it: its tokens, with the two that frame every text, and the words it has no token for."""

    tokens: int
    unknown: tuple[str, ...]


class PromptCounter:
    """Reads texts as the tokenizer in this file does: nothing cut, nothing padded, `[SEP]` in a text is text."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._unknown = self._tokenizer.token_to_id(getattr(self._tokenizer.model, "unk_token", None) or "")
        self._known: dict[str, Reading] = {}  # a prompt is asked about twice, a negative one by every job

    def read(self, text: str) -> Reading:
        found = self._known.get(text)
        if found is None:  # other threads may clear what is known at any moment
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[text] = self._read(text)
        return found

    def doubtful(self, texts: Sequence[str], limit: int) -> Iterator[int]:
        """The places of those texts that have more tokens than this, or words that are unknown.

        The tokenizer takes many at once on all cores, and other threads run meanwhile.
        """
        for start in range(0, len(texts), AT_ONCE):
            readings = self._tokenizer.encode_batch_fast(texts[start : start + AT_ONCE])
            for place, reading in enumerate(readings, start):
                ids = reading.ids
                if len(ids) > limit or self._unknown in ids:
                    yield place

    def _read(self, text: str) -> Reading:
        found = self._tokenizer.encode(text)
        ids = found.ids
        if self._unknown not in ids:
            return Reading(len(ids), ())
        spans = [span for id, span in zip(ids, found.offsets, strict=True) if id == self._unknown]
        return Reading(len(ids), tuple(dict.fromkeys(text[start:end] for start, end in spans)))


def check(recipe: Recipe, model: Model) -> None:
    """Raises PromptTooLong, which names the field, the count and the limit."""
    if (counter := counter_of(model)) is None:
        return
    counts = {field: counter.read(getattr(recipe, field)).tokens for field in ("prompt", "negative_prompt")}
    wrong = tuple(
        FieldError(field, too_long(count, model.name, model.token_limit))
        for field, count in counts.items()
        if count > model.token_limit
    )
    if wrong:
        raise PromptTooLong("; ".join(f"{e.field} {e.message}" for e in wrong) + ".", fields=wrong)


def doubtful(texts: Sequence[str], negative: str, model: Model) -> set[int]:
    """The places of those prompts that `check` or `warnings` has something to say of: quicker than asking them."""
    counter = counter_of(model)
    if counter and counter.read(negative).tokens > model.token_limit:
        return set(range(len(texts)))
    found = set(counter.doubtful(texts, model.token_limit)) if counter else set[int]()
    if model.vocabulary:
        words = model.vocabulary.words
        found.update(place for place, text in enumerate(texts) if not any(word in text for word in words))
    return found


def too_long(count: int, model: str, limit: int) -> str:
    return f"has {count} tokens; {model} reads at most {limit}"


def warnings(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """One line for each reason why the picture may not show what the prompt says."""
    lines = []
    if model.vocabulary and not any(word in recipe.prompt for word in model.vocabulary.words):
        lines.append(model.vocabulary.advice)
    if (counter := counter_of(model)) and (unknown := counter.read(recipe.prompt).unknown):
        lines.append(f"{model.name} cannot read {' '.join(unknown)} and draws the prompt as if it were not there.")
    return tuple(lines)


def counter_of(model: Model) -> PromptCounter | None:
    """The counter of a model whose tokenizer is on this host."""
    seen, counter = _seen.get(model.folder, (0.0, None))
    if time.monotonic() - seen > LOOK_AGAIN_S:
        file = model.tokenizer_file
        counter = _counter(file, file.stat().st_mtime_ns) if file else None
        _seen[model.folder] = time.monotonic(), counter
    return counter


_seen: dict[Path | None, tuple[float, PromptCounter | None]] = {}  # a million prompts ask, and the file rarely changes


@lru_cache(maxsize=64)
def _counter(file: Path, mtime_ns: int) -> PromptCounter:
    return PromptCounter(file)
